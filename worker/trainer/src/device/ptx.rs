//! The kernels as the code that an NVIDIA GPU is given, made here without one: each compiles for every
//! generation since Ampere, and no product of theirs is fused with a sum, which would be other bits.

use std::sync::Arc;

use cubecl::cuda::{CudaCompilationOptions, CudaCompiler, CudaRepresentation};
use cubecl::ir::features::Features;
use cubecl::ir::nvidia::SmArch;
use cubecl::ir::{AddressType, DeviceIdentity, HardwareProperties, MemoryDeviceProperties};
use cubecl::prelude::*;
use cubecl::{Compiler, CubeKernel};

use super::{blake3, kernels};

/// Ampere, Ada, Hopper and Blackwell.
const ARCHITECTURES: [u32; 4] = [80, 89, 90, 100];

fn device_properties() -> Arc<DeviceProperties> {
    let hardware = HardwareProperties {
        load_width: 128,
        vector_register_count: None,
        plane_size_min: 32,
        plane_size_max: 32,
        max_bindings: 32,
        max_shared_memory_size: 65536,
        max_cube_count: (u32::MAX, 65535, 65535),
        max_units_per_cube: 1024,
        max_cube_dim: (1024, 1024, 64),
        num_streaming_multiprocessors: None,
        num_tensor_cores: None,
        min_tensor_cores_dim: None,
        num_cpu_cores: None,
        last_level_cache_size: None,
        max_vector_size: VectorSize::MAX,
        cube_mma_reserved_shared_memory: 0,
    };
    Arc::new(DeviceProperties::new(
        Features::default(),
        MemoryDeviceProperties::new(u64::MAX, 512),
        hardware,
        cubecl::profile::TimingMethod::Device,
        DeviceIdentity {
            name: "offline".to_owned(),
            fingerprint: "offline".to_owned(),
            physical: None,
        },
    ))
}

/// The PTX of a kernel for `sm_{architecture}`.
fn ptx(kernel: &dyn CubeKernel, architecture: u32) -> String {
    let options = CudaCompilationOptions {
        arch: Some(SmArch::new(architecture, true)),
        ..Default::default()
    };
    let compiled = CudaCompiler::default().compile(kernel.define(), &options);
    match compiled.expect("it compiles") {
        CudaRepresentation::Llvm(module) => {
            let bytes = module.ptx.iter().map(|&byte| byte.cast_unsigned());
            let bytes = bytes.take_while(|byte| *byte != 0).collect();
            String::from_utf8(bytes).expect("PTX is text")
        }
        other => panic!("not by LLVM: {other:?}"),
    }
}

/// How often an instruction that begins so is in the code.
fn count(ptx: &str, instruction: &str) -> usize {
    let lines = ptx.lines().map(str::trim_start);
    lines.filter(|line| line.starts_with(instruction)).count()
}

macro_rules! kernel {
    ($kernel:path; $buffers:tt; $($comptime:expr),*) => {{
        let settings = KernelSettings::new(
            *CubeDim::new_1d(256),
            ExecutionMode::Checked,
            AddressType::U32,
        );
        let properties = device_properties();
        let target = Arc::new(TargetProperties::default());
        kernel!(@new $kernel, settings, properties, target; $buffers; $($comptime),*)
    }};
    (@new $kernel:path, $s:ident, $p:ident, $t:ident; [$($buffer:tt)*]; $($comptime:expr),*) => {
        <$kernel>::new(
            $s, $p, $t,
            $(kernel!(@buffer $buffer),)*
            $($comptime),*
        )
    };
    (@buffer b) => { BufferCompilationArg { inplace: None } };
    (@buffer s) => { () };
    (@buffer 4) => { (0..4).map(|_| kernel!(@buffer b)).collect() };
}

#[test]
fn all_kernels_compile_for_gpus_and_round_each_product() {
    for architecture in ARCHITECTURES {
        let all: [(&str, Box<dyn CubeKernel>); 9] = [
            (
                "sgd",
                Box::new(kernel!(kernels::sgd::Sgd; [b b b b s s s s];)),
            ),
            (
                "sgd_momentum",
                Box::new(kernel!(kernels::sgd_momentum::SgdMomentum; [b b b b b b s s s s s];)),
            ),
            (
                "adam",
                Box::new(kernel!(kernels::adam::Adam; [b b b b b b b b s s s s s s s s s s];)),
            ),
            (
                "sum",
                Box::new(kernel!(kernels::sum::Sum; [4 b]; vec![(0, 1), (2, 3), (0, 2)])),
            ),
            (
                "lane_facts",
                Box::new(kernel!(kernels::lane_facts::LaneFacts; [b b b b s];)),
            ),
            (
                "block_facts",
                Box::new(kernel!(kernels::block_facts::BlockFacts; [b b b];)),
            ),
            (
                "mask",
                Box::new(kernel!(kernels::mask::Mask; [b s s s s s s];)),
            ),
            ("chunks", Box::new(kernel!(blake3::chunks::Chunks; [b b];))),
            (
                "parents",
                Box::new(kernel!(blake3::parents::Parents; [b b];)),
            ),
        ];
        for (name, kernel) in all {
            let ptx = ptx(&*kernel, architecture);
            for fused in ["fma.", "mad.f"] {
                assert_eq!(
                    count(&ptx, fused),
                    0,
                    "{name} for sm_{architecture}:\n{ptx}"
                );
            }
            // The driver's assembler may fuse a product that has no rounding mode with a sum that has
            // none (PTX ISA, `add`): products must have one.
            for loose in ["mul.f", "div.approx", "div.full", "sqrt.approx"] {
                assert_eq!(
                    count(&ptx, loose),
                    0,
                    "{name}, {loose}, sm_{architecture}:\n{ptx}"
                );
            }
        }
    }
}
