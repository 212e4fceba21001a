//! How many ranks a run on this machine has, and which of its GPUs they get: a worker each, so that every
//! rank can die alone. Decides from what was found; looks at nothing itself.

use std::num::NonZero;

use muster_cluster::device::DeviceSpec;
use muster_cluster::job::spec::WorkersSpec;
use muster_worker::devices::Inventory;

/// What the workers of a run lend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lend {
    /// How many ranks there are to be.
    pub(super) ranks: u32,
    /// The index of the GPU of each worker; empty where ranks compute on processors.
    pub(super) gpus: Vec<u32>,
    /// What is worth telling, in one sentence.
    pub(super) remark: Option<String>,
}

/// What the command line says of the ranks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// How many there are to be.
    pub(super) ranks: Option<u32>,
    /// How many have one GPU.
    pub(super) per_gpu: NonZero<u32>,
}

/// Divides this machine for a job whose file asks for `workers`.
///
/// # Errors
/// Where the job needs GPUs that are not here; the text says why, and what to write instead.
pub(super) fn lend(
    workers: &WorkersSpec,
    Asked {
        ranks: asked,
        per_gpu,
    }: Asked,
    processors: u32,
    look: impl FnOnce() -> Inventory,
) -> Result<Lend, String> {
    let within = |number: u32| number.clamp(workers.min, workers.max.max(workers.min));
    let on_processors = |remark| Lend {
        ranks: asked.unwrap_or(within(processors)),
        gpus: Vec::new(),
        remark,
    };
    let device = workers.device;
    if device.is_cpu() {
        return Ok(on_processors(None));
    }
    let inventory = look();
    let number = u32::try_from(inventory.usable().len()).unwrap_or(u32::MAX);
    let places = number.saturating_mul(per_gpu.get());
    // What the command line asks for may be fewer than the file's fewest.
    let min = asked.map_or(workers.min, |asked| workers.min.min(asked));
    let why_none = inventory.why_none.as_deref();
    match device {
        DeviceSpec::Cpu => Ok(on_processors(None)),
        DeviceSpec::Auto if places < min.max(1) => {
            let why = match why_none {
                Some(why) => why.to_owned(),
                None => format!("this machine has {}, and {min} are needed", gpus(number)),
            };
            Ok(on_processors(Some(format!("trains on processors: {why}"))))
        }
        DeviceSpec::Cuda(only) if why_none.is_some() => Err(format!(
            "workers.device is \"{}\", and {}; write workers.device = \"cpu\" to train on processors, or \
             \"auto\" to take whatever is there",
            DeviceSpec::Cuda(only),
            why_none.unwrap_or_default()
        )),
        DeviceSpec::Cuda(Some(index)) if index >= number => Err(format!(
            "workers.device is \"{device}\", and this machine has {}, counted from 0",
            gpus(number)
        )),
        DeviceSpec::Cuda(Some(index)) => {
            let ranks = asked.unwrap_or(min);
            if ranks > 1 {
                return Err(format!(
                    "workers.device is \"{device}\", one GPU of each machine, and {ranks} ranks are to \
                     run on this one; write workers.device = \"cuda\", or run one rank"
                ));
            }
            Ok(Lend {
                ranks,
                gpus: vec![index],
                remark: None,
            })
        }
        DeviceSpec::Cuda(None) | DeviceSpec::Auto => {
            let ranks = asked.unwrap_or(within(places));
            if ranks > places {
                let each = match per_gpu.get() {
                    1 => "each on one of its own".to_owned(),
                    per_gpu => format!("{per_gpu} on each"),
                };
                return Err(format!(
                    "{ranks} ranks are to run on GPUs, {each}, and this machine has {}; run fewer with \
                     --workers, or lower workers.min",
                    gpus(number)
                ));
            }
            let spares = workers.spares.min(places - ranks);
            Ok(Lend {
                ranks,
                gpus: (0..ranks + spares).map(|place| place % number).collect(),
                remark: None,
            })
        }
    }
}

/// A number of GPUs, in words.
fn gpus(number: u32) -> String {
    match number {
        1 => "1 GPU that may be used".to_owned(),
        number => format!("{number} GPUs that may be used"),
    }
}

#[cfg(test)]
mod tests {
    use muster_cluster::job::spec::Redundancy;
    use muster_worker::devices::Gpu;

    use super::*;

    fn job(device: &str, min: u32, max: u32, spares: u32) -> WorkersSpec {
        WorkersSpec {
            min,
            max,
            spares,
            redundancy: Redundancy::Full,
            device: device.parse().unwrap(),
        }
    }

    fn machine(number: usize) -> Inventory {
        let gpus = vec![Gpu::default(); number];
        Inventory {
            driver: None,
            all: gpus.clone(),
            visible: gpus,
            why_none: (number == 0).then(|| "this machine has no NVIDIA driver".to_owned()),
        }
    }

    /// The ranks and the GPUs of a run, or the refusal, on a machine of eight processors.
    fn of(job: &WorkersSpec, asked: Option<u32>, number: usize) -> Result<(u32, Vec<u32>), String> {
        let lent = lend(job, ranks(asked), 8, || machine(number))?;
        Ok((lent.ranks, lent.gpus))
    }

    fn ranks(ranks: Option<u32>) -> Asked {
        Asked {
            ranks,
            per_gpu: NonZero::<u32>::MIN,
        }
    }

    #[test]
    fn several_ranks_may_have_one_gpu() {
        let shared = |job: &WorkersSpec, ranks, per_gpu, number| {
            let per_gpu = NonZero::new(per_gpu).unwrap();
            let lent = lend(job, Asked { ranks, per_gpu }, 8, || machine(number))?;
            Ok::<_, String>((lent.ranks, lent.gpus))
        };
        let cuda = job("cuda", 1, 8, 1);
        assert_eq!(shared(&cuda, Some(2), 3, 1), Ok((2, vec![0, 0, 0])));
        assert_eq!(shared(&cuda, Some(3), 2, 2), Ok((3, vec![0, 1, 0, 1])));
        assert_eq!(
            shared(&job("auto", 2, 8, 0), None, 2, 1),
            Ok((2, vec![0, 0]))
        );
        let refused = shared(&cuda, Some(3), 2, 1).unwrap_err();
        assert!(
            refused.contains("3 ranks are to run on GPUs, 2 on each"),
            "{refused}"
        );
    }

    #[test]
    fn a_job_for_processors_looks_for_no_gpu() {
        let look = || panic!("nobody asked for GPUs");
        let lent = lend(&job("cpu", 1, 4, 0), ranks(None), 8, look).unwrap();
        assert_eq!((lent.ranks, lent.gpus), (4, Vec::new()));
    }

    #[test]
    fn a_job_for_gpus_gets_one_a_rank_and_those_left_for_spares() {
        let cuda = job("cuda", 1, 8, 2);
        assert_eq!(of(&cuda, None, 4), Ok((4, vec![0, 1, 2, 3])));
        assert_eq!(of(&cuda, Some(2), 4), Ok((2, vec![0, 1, 2, 3])));
        assert_eq!(of(&cuda, Some(3), 4), Ok((3, vec![0, 1, 2, 3])));
        assert_eq!(of(&cuda, Some(1), 8), Ok((1, vec![0, 1, 2])));
        assert_eq!(of(&job("cuda", 1, 2, 0), None, 4), Ok((2, vec![0, 1])));
        let refused = of(&cuda, Some(5), 4).unwrap_err();
        assert!(refused.contains("this machine has 4 GPUs"), "{refused}");
        let refused = of(&job("cuda", 2, 8, 0), None, 1).unwrap_err();
        assert!(
            refused.contains("2 ranks") && refused.contains("1 GPU that"),
            "{refused}"
        );
        assert_eq!(of(&job("cuda", 2, 8, 0), Some(1), 1), Ok((1, vec![0])));
    }

    #[test]
    fn a_job_for_gpus_is_refused_where_there_is_none_with_the_reason() {
        for device in ["cuda", "cuda:0"] {
            let refused = of(&job(device, 1, 8, 0), None, 0).unwrap_err();
            assert!(refused.contains("has no NVIDIA driver"), "{refused}");
            assert!(refused.contains("workers.device = \"cpu\""), "{refused}");
        }
    }

    #[test]
    fn a_job_for_one_index_has_one_rank_on_a_machine() {
        let second = job("cuda:1", 1, 8, 3);
        assert_eq!(of(&second, None, 4), Ok((1, vec![1])));
        let refused = of(&second, None, 1).unwrap_err();
        assert!(refused.contains("counted from 0"), "{refused}");
        let refused = of(&second, Some(2), 4).unwrap_err();
        assert!(refused.contains("one GPU of each machine"), "{refused}");
        assert!(of(&job("cuda:1", 2, 8, 0), None, 4).is_err());
    }

    #[test]
    fn auto_takes_what_is_there_and_says_why_it_is_not_gpus() {
        let auto = job("auto", 2, 8, 0);
        assert_eq!(of(&auto, None, 2), Ok((2, vec![0, 1])));
        assert_eq!(of(&auto, None, 1), Ok((8, Vec::new())));
        let lent = lend(&auto, ranks(None), 8, || machine(0)).unwrap();
        assert_eq!(
            lent.remark.as_deref(),
            Some("trains on processors: this machine has no NVIDIA driver")
        );
        let lent = lend(&auto, ranks(None), 8, || machine(1)).unwrap();
        let remark = lent.remark.unwrap();
        assert!(
            remark.contains("1 GPU that may be used, and 2 are needed"),
            "{remark}"
        );
    }
}
