//! Which GPUs a process may use, as its environment says: CUDA's own variable, and those by which Slurm
//! tells what an allocation has. A function of both and of the GPUs that there are.
//!
//! `CUDA_VISIBLE_DEVICES` is a list of indices or of numbers (`GPU-...`, `MIG-...`, which may be cut
//! short where they stay unique), in the order in which the process counts. What CUDA does not
//! understand ends the list, and what stands before it counts; a GPU that is named twice leaves none. Of
//! the instances of divided GPUs a process sees one. (CUDA C++ Programming Guide, "CUDA Environment
//! Variables"; NVIDIA Multi-Instance GPU User Guide.)

use std::env;

use super::Gpu;

/// The variables that say which GPUs a process may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `CUDA_VISIBLE_DEVICES`.
    pub cuda_visible_devices: Option<String>,
    /// `GPU_DEVICE_ORDINAL`: indices among the GPUs that the system shows.
    pub gpu_device_ordinal: Option<String>,
    /// `SLURM_STEP_GPUS`: indices among all GPUs of the machine.
    pub slurm_step_gpus: Option<String>,
    /// `SLURM_JOB_GPUS`: indices among all GPUs of the machine.
    pub slurm_job_gpus: Option<String>,
}

impl Environment {
    /// That of this process.
    #[must_use]
    pub fn of_this_process() -> Self {
        let variable =
            |name: &str| env::var_os(name).map(|text| text.to_string_lossy().into_owned());
        Self {
            cuda_visible_devices: variable("CUDA_VISIBLE_DEVICES"),
            gpu_device_ordinal: variable("GPU_DEVICE_ORDINAL"),
            slurm_step_gpus: variable("SLURM_STEP_GPUS"),
            slurm_job_gpus: variable("SLURM_JOB_GPUS"),
        }
    }
}

/// A GPU, or one of its instances, by their places among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pick {
    pub(super) gpu: usize,
    pub(super) part: Option<usize>,
}

/// What may be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Picked {
    /// In the order that the process counts by.
    pub(super) picks: Vec<Pick>,
    /// The variable that chose, as `NAME="text"`.
    pub(super) by: Option<String>,
}

/// Reads the variables: the first that is set decides.
pub(super) fn pick(env: &Environment, all: &[Gpu]) -> Picked {
    let cuda = env.cuda_visible_devices.as_deref();
    if let Some(text) = cuda {
        return Picked {
            picks: by_cuda(text, all),
            by: Some(format!("CUDA_VISIBLE_DEVICES={text:?}")),
        };
    }
    let of_slurm = [
        ("GPU_DEVICE_ORDINAL", &env.gpu_device_ordinal),
        ("SLURM_STEP_GPUS", &env.slurm_step_gpus),
        ("SLURM_JOB_GPUS", &env.slurm_job_gpus),
    ];
    let set = of_slurm
        .into_iter()
        .find_map(|(name, text)| Some((name, text.as_deref()?)));
    match set {
        Some((name, text)) => Picked {
            picks: by_slurm(text, all),
            by: Some(format!("{name}={text:?}")),
        },
        None => Picked {
            picks: everything(all),
            by: None,
        },
    }
}

fn everything(all: &[Gpu]) -> Vec<Pick> {
    let parts = all
        .iter()
        .enumerate()
        .find(|(_, gpu)| !gpu.parts.is_empty());
    let whole = |(gpu, _): (usize, &Gpu)| Pick { gpu, part: None };
    match parts {
        // A divided GPU is of no use as a whole, and a process sees one instance.
        Some((gpu, _)) if all.iter().all(|gpu| gpu.is_divided) => vec![Pick { gpu, part: Some(0) }],
        _ => {
            let undivided = all.iter().enumerate();
            undivided
                .filter(|(_, gpu)| !gpu.is_divided)
                .map(whole)
                .collect()
        }
    }
}

fn by_cuda(text: &str, all: &[Gpu]) -> Vec<Pick> {
    let mut picks: Vec<Pick> = Vec::new();
    for word in text.split(',').map(str::trim) {
        let Some(pick) = named(word, all) else { break };
        if picks.iter().any(|known| known.gpu == pick.gpu) {
            return Vec::new();
        }
        picks.push(pick);
        if pick.part.is_some() {
            break;
        }
    }
    // An instance behind whole GPUs is not seen beside them.
    let is_mixed = picks.len() > 1 && picks.last().is_some_and(|pick| pick.part.is_some());
    if is_mixed {
        picks.pop();
    }
    picks
}

fn named(word: &str, all: &[Gpu]) -> Option<Pick> {
    if word.starts_with("MIG-") {
        let parts = all.iter().enumerate().flat_map(|(gpu, one)| {
            let parts = one.parts.iter().enumerate();
            parts.map(move |(part, uuid)| {
                (
                    Pick {
                        gpu,
                        part: Some(part),
                    },
                    uuid,
                )
            })
        });
        return only(parts.filter(|(_, uuid)| uuid.starts_with(word)));
    }
    if word.starts_with("GPU-") {
        let gpus = all.iter().enumerate();
        let gpus = gpus.map(|(gpu, one)| (Pick { gpu, part: None }, &one.uuid));
        return only(gpus.filter(|(_, uuid)| uuid.starts_with(word)));
    }
    let gpu: usize = word.parse().ok()?;
    let first_part = all.get(gpu)?.is_divided.then_some(0);
    Some(Pick {
        gpu,
        part: first_part,
    })
}

/// The only one, as a name that is cut short must mean.
fn only<'a>(mut found: impl Iterator<Item = (Pick, &'a String)>) -> Option<Pick> {
    let (pick, _) = found.next()?;
    found.next().is_none().then_some(pick)
}

/// Slurm counts all GPUs of the machine. Where it has the system hide the others, those that are left
/// are the allocation's, and are counted anew.
fn by_slurm(text: &str, all: &[Gpu]) -> Vec<Pick> {
    let indices: Vec<usize> = text
        .split(',')
        .filter_map(|word| word.trim().parse().ok())
        .collect();
    if !indices.is_empty() && all.len() <= indices.len() {
        return everything(all);
    }
    let mut picks: Vec<Pick> = Vec::new();
    for index in indices {
        if let Some(pick) = named(&index.to_string(), all)
            && !picks.contains(&pick)
        {
            picks.push(pick);
        }
    }
    picks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two GPUs whose numbers begin alike, another one, and one that is divided.
    fn machine() -> Vec<Gpu> {
        let gpu = |uuid: &str, parts: &[&str]| Gpu {
            uuid: uuid.to_owned(),
            is_divided: !parts.is_empty(),
            parts: parts.iter().map(|&part| part.to_owned()).collect(),
            ..Gpu::default()
        };
        vec![
            gpu("GPU-aa10", &[]),
            gpu("GPU-aa20", &[]),
            gpu("GPU-b0", &[]),
            gpu("GPU-c0", &["MIG-c1", "MIG-c2"]),
        ]
    }

    /// The picks as a person would write them.
    fn written(picked: &Picked) -> String {
        let word = |pick: &Pick| match pick.part {
            Some(part) => format!("{}.{part}", pick.gpu),
            None => pick.gpu.to_string(),
        };
        picked.picks.iter().map(word).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn cuda_s_variable_is_read_as_cuda_reads_it() {
        let table = [
            // Indices, in the order that they are named.
            ("0", "0"),
            ("2,0", "2 0"),
            (" 1 , 2 ", "1 2"),
            // Nothing, and what ends a list.
            ("", ""),
            ("-1", ""),
            ("0,-1,1", "0"),
            ("1,9,0", "1"),
            ("0,x,1", "0"),
            ("NoDevFiles", ""),
            ("0,,1", "0"),
            // Numbers, whole and cut short.
            ("GPU-b0", "2"),
            ("GPU-aa2,GPU-b", "1 2"),
            ("GPU-aa", ""),
            ("GPU-b0,GPU-zz,0", "2"),
            ("GPU-b0,1", "2 1"),
            // Twice the same.
            ("0,0", ""),
            ("0,GPU-aa10", ""),
            // Instances: one, and not beside whole GPUs.
            ("MIG-c2", "3.1"),
            ("MIG-c1,MIG-c2", "3.0"),
            ("3", "3.0"),
            ("0,MIG-c1", "0"),
            ("MIG-c", ""),
        ];
        for (text, expected) in table {
            let env = Environment {
                cuda_visible_devices: Some(text.to_owned()),
                // It does not matter where CUDA's own is set.
                slurm_job_gpus: Some("1".to_owned()),
                ..Environment::default()
            };
            let picked = pick(&env, &machine());
            assert_eq!(written(&picked), expected, "{text:?}");
            assert_eq!(picked.by, Some(format!("CUDA_VISIBLE_DEVICES={text:?}")));
        }
    }

    #[test]
    fn slurm_s_variables_count_all_gpus_of_the_machine() {
        let env = |ordinal: &str, step: &str, job: &str| {
            let set = |text: &str| (text != "-").then(|| text.to_owned());
            Environment {
                cuda_visible_devices: None,
                gpu_device_ordinal: set(ordinal),
                slurm_step_gpus: set(step),
                slurm_job_gpus: set(job),
            }
        };
        let table = [
            (env("-", "-", "-"), "0 1 2"),
            (env("-", "-", "2"), "2"),
            (env("-", "1,2", "0,1,2"), "1 2"),
            (env("0", "1", "0,1"), "0"),
            (env("-", "-", "0,0,1"), "0 1"),
            (env("-", "-", ""), ""),
            (env("-", "-", "7"), ""),
            (env("-", "-", "3"), "3.0"),
        ];
        for (env, expected) in table {
            assert_eq!(written(&pick(&env, &machine())), expected, "{env:?}");
        }
        // The system shows this process only the two that it was given, whatever Slurm calls them.
        let shown = &machine()[..2];
        assert_eq!(written(&pick(&env("-", "-", "5,6"), shown)), "0 1");
    }

    #[test]
    fn a_machine_of_divided_gpus_lends_one_instance() {
        let divided = &machine()[3..];
        let picked = pick(&Environment::default(), divided);
        assert_eq!((written(&picked).as_str(), picked.by), ("0.0", None));
        assert_eq!(pick(&Environment::default(), &[]), Picked::default());
    }
}
