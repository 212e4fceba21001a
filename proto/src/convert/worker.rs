//! What a worker is: its registration, its GPUs and its numerics class.

use muster_cluster::command::{Node, NumericsClass};
use muster_cluster::device::Gpu;
use muster_cluster::ids::{Incarnation, WorkerName};

use super::BadMessage;
use crate::v1;

/// A registration for the wire.
#[must_use]
pub fn register(worker: &WorkerName, node: &Node) -> v1::RegisterWorker {
    v1::RegisterWorker {
        worker: worker.to_string(),
        incarnation: node.incarnation.0,
        num_devices: node.num_devices,
        class: Some((&node.class).into()),
        host: node.host.clone(),
        gpus: node.gpus.iter().map(Into::into).collect(),
    }
}

/// A registration from the wire.
///
/// # Errors
/// Where a class is missing, or two GPUs have one index.
pub fn node(message: v1::RegisterWorker) -> Result<Node, BadMessage> {
    let mut gpus = message
        .gpus
        .into_iter()
        .map(gpu)
        .collect::<Result<Vec<_>, _>>()?;
    gpus.sort_by_key(|gpu| gpu.index);
    if let Some(twice) = gpus.windows(2).find(|two| two[0].index == two[1].index) {
        return Err(BadMessage::Senseless {
            what: "worker",
            why: format!("it has two GPUs of index {}", twice[0].index),
        });
    }
    Ok(Node {
        incarnation: Incarnation(message.incarnation),
        num_devices: message.num_devices,
        class: message
            .class
            .ok_or(BadMessage::Missing("numerics class"))?
            .into(),
        gpus,
        host: message.host,
    })
}

impl From<&Gpu> for v1::Gpu {
    fn from(gpu: &Gpu) -> Self {
        Self {
            index: gpu.index,
            name: gpu.name.clone(),
            memory_bytes: gpu.memory_bytes,
            uuid: gpu.uuid.clone(),
            class: Some((&gpu.class).into()),
        }
    }
}

/// A GPU from the wire. A class that names none would pass for one of processors.
fn gpu(message: v1::Gpu) -> Result<Gpu, BadMessage> {
    let class = message.class.filter(|class| !class.gpu.is_empty());
    Ok(Gpu {
        index: message.index,
        name: message.name,
        memory_bytes: message.memory_bytes,
        uuid: message.uuid,
        class: class
            .ok_or(BadMessage::Missing("numerics class of a GPU"))?
            .into(),
    })
}

impl From<&NumericsClass> for v1::NumericsClass {
    fn from(class: &NumericsClass) -> Self {
        let NumericsClass {
            build,
            canary,
            libc,
            cpu,
            gpu,
        } = class.clone();
        Self {
            build,
            canary,
            libc,
            cpu,
            gpu,
        }
    }
}

impl From<v1::NumericsClass> for NumericsClass {
    fn from(message: v1::NumericsClass) -> Self {
        let v1::NumericsClass {
            build,
            canary,
            libc,
            cpu,
            gpu,
        } = message;
        Self {
            build,
            canary,
            libc,
            cpu,
            gpu,
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn class(gpu: &str) -> NumericsClass {
        NumericsClass {
            build: "b1".to_owned(),
            gpu: gpu.to_owned(),
            ..NumericsClass::default()
        }
    }

    fn with_gpus(indices: &[u32]) -> Node {
        let gpu = |index: &u32| Gpu {
            index: *index,
            name: "NVIDIA H200".to_owned(),
            memory_bytes: 141 << 30,
            uuid: format!("GPU-{index}"),
            class: class("NVIDIA H200"),
        };
        Node {
            incarnation: Incarnation(7),
            num_devices: 2,
            class: class(""),
            gpus: indices.iter().map(gpu).collect(),
            host: "10.0.0.2".to_owned(),
        }
    }

    #[test]
    fn a_worker_with_gpus_comes_back_as_it_was() {
        let worker = WorkerName::new("w1").unwrap();
        let known = with_gpus(&[0, 2]);
        let bytes = register(&worker, &known).encode_to_vec();
        let read = v1::RegisterWorker::decode(&bytes[..]).unwrap();
        assert_eq!(node(read), Ok(known));
    }

    #[test]
    fn gpus_that_cannot_be_told_apart_are_refused() {
        let worker = WorkerName::new("w1").unwrap();
        let twice = node(register(&worker, &with_gpus(&[3, 0, 3])));
        let error = twice.unwrap_err().to_string();
        assert!(error.contains("two GPUs of index 3"), "{error}");
        let mut classless = register(&worker, &with_gpus(&[0]));
        classless.gpus[0].class = Some((&class("")).into());
        assert!(node(classless).is_err());
    }

    #[test]
    fn a_worker_of_an_older_build_has_no_gpus() {
        // As builds wrote it that knew none: the name, 7, 2, a class, and the host.
        let mut bytes = vec![
            0x0a, 2, b'w', b'1', 0x10, 7, 0x18, 2, 0x22, 4, 0x0a, 2, b'b', b'1',
        ];
        bytes.extend([0x2a, 8]);
        bytes.extend(b"10.0.0.2");
        let read = v1::RegisterWorker::decode(&bytes[..]).unwrap();
        assert_eq!(node(read), Ok(with_gpus(&[])));
    }
}
