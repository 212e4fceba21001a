//! Which of the visible GPUs a worker lends, and how they are registered and shown to ranks.

use std::str::FromStr;

use muster_proto::v1;

use super::{Driver, Gpu, Inventory};

/// Which GPUs a worker is told to lend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// None, whatever the machine has.
    None,
    /// All that it may use; on a machine without any it lends processors alone.
    #[default]
    All,
    /// Those of these indices.
    Only(Vec<u32>),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => return Ok(Self::None),
            "all" => return Ok(Self::All),
            _ => {}
        }
        let mut indices = text
            .split(',')
            .map(|word| word.trim().parse::<u32>())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| "expected none, all, or indices such as 0,2".to_owned())?;
        indices.sort_unstable();
        if indices.windows(2).any(|two| two[0] == two[1]) {
            return Err("a GPU is named twice".to_owned());
        }
        Ok(Self::Only(indices))
    }
}

/// The GPUs that a worker lends, with the indices that ranks know them by.
///
/// # Errors
/// Where one is named that may not be used; the text says why.
pub fn offered(inventory: &Inventory, choice: &Choice) -> Result<Vec<(u32, Gpu)>, String> {
    let usable = (0u32..).zip(inventory.usable().iter().cloned());
    let indices = match choice {
        Choice::None => return Ok(Vec::new()),
        Choice::All => return Ok(usable.collect()),
        Choice::Only(indices) => indices,
    };
    if let Some(why) = &inventory.why_none {
        return Err(format!("no GPU can be lent: {why}"));
    }
    let usable: Vec<(u32, Gpu)> = usable.collect();
    let pick = |index: &u32| {
        let found = usable.iter().find(|(known, _)| known == index);
        found.cloned().ok_or_else(|| {
            let number = usable.len();
            format!("there is no GPU {index}: this worker sees {number}, counted from 0")
        })
    };
    indices.iter().map(pick).collect()
}

/// As a worker registers them. What decides the bits of a GPU beside the job is the build, which holds or
/// makes the kernels, the model with its instructions, and the driver, which translates for it.
pub(crate) fn registered(
    gpus: &[(u32, Gpu)],
    driver: Option<&Driver>,
    build: &str,
) -> Vec<v1::Gpu> {
    let version = driver.map_or("", |driver| driver.version.as_str());
    let version = if version.is_empty() {
        "unknown"
    } else {
        version
    };
    let register = |(index, gpu): &(u32, Gpu)| {
        let (major, minor) = gpu.compute;
        let class = v1::NumericsClass {
            build: build.to_owned(),
            gpu: format!(
                "{}, driver {version}, compute capability {major}.{minor}",
                gpu.name
            ),
            ..v1::NumericsClass::default()
        };
        v1::Gpu {
            index: *index,
            name: gpu.name.clone(),
            memory_bytes: gpu.memory_bytes,
            uuid: gpu.uuid.clone(),
            class: Some(class),
        }
    };
    gpus.iter().map(register).collect()
}

/// What `CUDA_VISIBLE_DEVICES` may be for a rank to see one GPU, by index, whatever order CUDA would count
/// them in and whatever else tells the worker which to use: their numbers.
pub(crate) fn numbers(inventory: &Inventory) -> Vec<String> {
    let usable = inventory.usable().iter();
    usable.map(|gpu| gpu.uuid.clone()).collect()
}
