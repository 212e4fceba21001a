//! The kernels as operations on Burn's tensors, which run in order with all others of the device. All
//! vectors are flat; integers are bits of 32, whatever they mean.
#![allow(
    unsafe_code,
    reason = "a kernel is told the length of its arguments' memory, which nobody else checks"
)]

use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, backend_extension};
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::blake3::{self, CHUNK_BYTES, CV_WORDS};
use super::kernels::{self, BLOCK, LANES};

/// What every update divides and scales a reduced vector by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    pub(crate) num_shards: f32,
    pub(crate) factor: f32,
}

/// The finished numbers of a step of SGD.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SgdNumbers {
    pub(crate) step_size: f32,
    pub(crate) weight_decay: f32,
    pub(crate) momentum: f32,
}

/// The finished numbers of a step of Adam or AdamW.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamNumbers {
    pub(crate) step_size: f32,
    pub(crate) weight_keep: f32,
    pub(crate) weight_decay: f32,
    pub(crate) first_weight: f32,
    pub(crate) beta2: f32,
    pub(crate) second_weight: f32,
    pub(crate) second_correction: f32,
    pub(crate) epsilon: f32,
}

/// The operations; [`super`] says what each does.
#[backend_extension(Cube, Fusion)]
pub(crate) trait ArenaOps: Backend {
    #[fusion(dtype = parameters, shape = parameters)]
    fn arena_sgd(
        sums: FloatTensor<Self>,
        groups: IntTensor<Self>,
        parameters: FloatTensor<Self>,
        scale: Scale,
        numbers: SgdNumbers,
    ) -> FloatTensor<Self>;

    #[fusion(meta = |_sums, _groups, parameters, velocities, _scale, _numbers| {
        (parameters.clone(), velocities.clone())
    })]
    fn arena_sgd_momentum(
        sums: FloatTensor<Self>,
        groups: IntTensor<Self>,
        parameters: FloatTensor<Self>,
        velocities: FloatTensor<Self>,
        scale: Scale,
        numbers: SgdNumbers,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    #[fusion(meta = |_sums, _groups, parameters, firsts, seconds, _scale, _numbers| {
        (parameters.clone(), firsts.clone(), seconds.clone())
    })]
    fn arena_adam(
        sums: FloatTensor<Self>,
        groups: IntTensor<Self>,
        parameters: FloatTensor<Self>,
        firsts: FloatTensor<Self>,
        seconds: FloatTensor<Self>,
        scale: Scale,
        numbers: AdamNumbers,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    #[fusion(meta = |values, _groups, _divisor| {
        TensorSpec::new(Shape::from([num_facts(&values.shape)]), DType::I32)
    })]
    fn arena_facts(
        values: FloatTensor<Self>,
        groups: IntTensor<Self>,
        divisor: f32,
    ) -> IntTensor<Self>;

    /// `beside` says on which device.
    #[fusion(meta = |_beside, _stream, _threshold, _kept, len| {
        TensorSpec::new(Shape::from([*len]), DType::F32)
    })]
    fn arena_mask(
        beside: FloatTensor<Self>,
        stream: [u32; 4],
        threshold: u32,
        kept: f32,
        len: usize,
    ) -> FloatTensor<Self>;

    #[fusion(meta = |values| TensorSpec::new(Shape::from([num_chunk_words(&values.shape)]), DType::I32))]
    fn arena_chunks(values: FloatTensor<Self>) -> IntTensor<Self>;

    #[fusion(meta = |nodes| TensorSpec::new(Shape::from([num_parent_words(&nodes.shape)]), DType::I32))]
    fn arena_parents(nodes: IntTensor<Self>) -> IntTensor<Self>;
}

fn num_facts(shape: &Shape) -> usize {
    shape.num_elements().div_ceil(BLOCK) * 3
}

fn num_chunk_words(shape: &Shape) -> usize {
    (shape.num_elements() * 4).div_ceil(CHUNK_BYTES) * CV_WORDS
}

fn num_parent_words(shape: &Shape) -> usize {
    (shape.num_elements() / CV_WORDS).div_ceil(2) * CV_WORDS
}

/// A tensor's memory as an argument of a kernel.
fn argument(tensor: &CubeTensor) -> BufferArg {
    let len = tensor.meta.num_elements();
    // SAFETY: a contiguous tensor's buffer holds all of its elements.
    unsafe { BufferArg::from_raw_parts(tensor.handle.clone(), len) }
}

/// A flat tensor beside `like`, of which a kernel writes every element.
fn beside(like: &CubeTensor, len: usize, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(
        like.client.clone(),
        like.device.clone(),
        Shape::from([len]),
        dtype,
    )
}

/// How many cubes of how many units give one to each of `len` elements.
pub(super) fn units(client: &cubecl::client::Client, len: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new(client, len);
    (calculate_cube_count_elemwise(client, len, dim), dim)
}

impl ArenaOps for CubeBackend {
    fn arena_sgd(
        sums: CubeTensor,
        groups: CubeTensor,
        parameters: CubeTensor,
        scale: Scale,
        numbers: SgdNumbers,
    ) -> CubeTensor {
        let [sums, groups, parameters] = [sums, groups, parameters].map(into_contiguous);
        let len = parameters.meta.num_elements();
        let new = beside(&parameters, len, DType::F32);
        let (count, dim) = units(&new.client, len);
        kernels::sgd::launch(
            &new.client,
            count,
            dim,
            argument(&sums),
            argument(&groups),
            argument(&parameters),
            argument(&new),
            scale.num_shards,
            scale.factor,
            numbers.step_size,
            numbers.weight_decay,
        );
        new
    }

    fn arena_sgd_momentum(
        sums: CubeTensor,
        groups: CubeTensor,
        parameters: CubeTensor,
        velocities: CubeTensor,
        scale: Scale,
        numbers: SgdNumbers,
    ) -> (CubeTensor, CubeTensor) {
        let [sums, groups, parameters, velocities] =
            [sums, groups, parameters, velocities].map(into_contiguous);
        let len = parameters.meta.num_elements();
        let new = [(); 2].map(|()| beside(&parameters, len, DType::F32));
        let (count, dim) = units(&parameters.client, len);
        kernels::sgd_momentum::launch(
            &parameters.client,
            count,
            dim,
            argument(&sums),
            argument(&groups),
            argument(&parameters),
            argument(&velocities),
            argument(&new[0]),
            argument(&new[1]),
            scale.num_shards,
            scale.factor,
            numbers.step_size,
            numbers.weight_decay,
            numbers.momentum,
        );
        new.into()
    }

    fn arena_adam(
        sums: CubeTensor,
        groups: CubeTensor,
        parameters: CubeTensor,
        firsts: CubeTensor,
        seconds: CubeTensor,
        scale: Scale,
        numbers: AdamNumbers,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let [sums, groups, parameters, firsts, seconds] =
            [sums, groups, parameters, firsts, seconds].map(into_contiguous);
        let len = parameters.meta.num_elements();
        let new = [(); 3].map(|()| beside(&parameters, len, DType::F32));
        let (count, dim) = units(&parameters.client, len);
        kernels::adam::launch(
            &parameters.client,
            count,
            dim,
            argument(&sums),
            argument(&groups),
            argument(&parameters),
            argument(&firsts),
            argument(&seconds),
            argument(&new[0]),
            argument(&new[1]),
            argument(&new[2]),
            scale.num_shards,
            scale.factor,
            numbers.step_size,
            numbers.weight_keep,
            numbers.weight_decay,
            numbers.first_weight,
            numbers.beta2,
            numbers.second_weight,
            numbers.second_correction,
            numbers.epsilon,
        );
        new.into()
    }

    fn arena_facts(values: CubeTensor, groups: CubeTensor, divisor: f32) -> CubeTensor {
        let [values, groups] = [values, groups].map(into_contiguous);
        let num_blocks = values.meta.num_elements().div_ceil(BLOCK);
        let num_lanes = num_blocks * LANES;
        let squares = values.client.empty(num_lanes * size_of::<f64>());
        let faults = values.client.empty(num_lanes * size_of::<u32>());
        let facts = beside(&values, num_blocks * 3, DType::I32);
        let lanes = |memory: &Handle| {
            // SAFETY: both were made this long above.
            unsafe { BufferArg::from_raw_parts(memory.clone(), num_lanes) }
        };
        let (count, dim) = units(&values.client, num_lanes);
        kernels::lane_facts::launch(
            &values.client,
            count,
            dim,
            argument(&values),
            argument(&groups),
            lanes(&squares),
            lanes(&faults),
            divisor,
        );
        let (count, dim) = units(&values.client, num_blocks);
        kernels::block_facts::launch(
            &values.client,
            count,
            dim,
            lanes(&squares),
            lanes(&faults),
            argument(&facts),
        );
        facts
    }

    fn arena_mask(
        there: CubeTensor,
        [key0, key1, name0, name1]: [u32; 4],
        threshold: u32,
        kept: f32,
        len: usize,
    ) -> CubeTensor {
        let out = beside(&there, len, DType::F32);
        let (count, dim) = units(&out.client, len.div_ceil(4));
        kernels::mask::launch(
            &out.client,
            count,
            dim,
            argument(&out),
            key0,
            key1,
            name0,
            name1,
            threshold,
            kept,
        );
        out
    }

    fn arena_chunks(values: CubeTensor) -> CubeTensor {
        let values = into_contiguous(values);
        let num_chunks = (values.meta.num_elements() * 4).div_ceil(CHUNK_BYTES);
        let cvs = beside(&values, num_chunks * CV_WORDS, DType::I32);
        let (count, dim) = units(&values.client, num_chunks);
        blake3::chunks::launch(
            &values.client,
            count,
            dim,
            argument(&values),
            argument(&cvs),
        );
        cvs
    }

    fn arena_parents(nodes: CubeTensor) -> CubeTensor {
        let nodes = into_contiguous(nodes);
        let num_parents = (nodes.meta.num_elements() / CV_WORDS).div_ceil(2);
        let cvs = beside(&nodes, num_parents * CV_WORDS, DType::I32);
        let (count, dim) = units(&nodes.client, num_parents);
        blake3::parents::launch(&nodes.client, count, dim, argument(&nodes), argument(&cvs));
        cvs
    }
}
