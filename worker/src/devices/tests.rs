//! What is concluded from what NVML and CUDA say, on machines that are written down here.

use super::*;

fn h200(uuid: &str) -> Gpu {
    Gpu {
        name: "NVIDIA H200".to_owned(),
        uuid: uuid.to_owned(),
        memory_bytes: 150_754_820_096,
        free_bytes: Some(150_000_000_000),
        pci: Some("00000000:18:00.0".to_owned()),
        compute: (9, 0),
        is_persistent: Some(true),
        ..Gpu::default()
    }
}

fn seen(uuids: &[&str]) -> Seen {
    Seen {
        driver: Driver {
            version: "580.65.06".to_owned(),
            cuda: (13, 0),
        },
        gpus: uuids.iter().map(|uuid| h200(uuid)).collect(),
    }
}

/// As CUDA tells of a GPU: without what only NVML knows.
fn by_cuda(uuids: &[&str]) -> Seen {
    let bare = |gpu: Gpu| Gpu {
        free_bytes: None,
        pci: None,
        is_persistent: None,
        ..gpu
    };
    let all = seen(uuids);
    Seen {
        driver: Driver {
            version: String::new(),
            ..all.driver
        },
        gpus: all.gpus.into_iter().map(bare).collect(),
    }
}

fn hiding(text: &str) -> Environment {
    Environment {
        cuda_visible_devices: Some(text.to_owned()),
        ..Environment::default()
    }
}

fn uuids(gpus: &[Gpu]) -> Vec<&str> {
    gpus.iter().map(|gpu| gpu.uuid.as_str()).collect()
}

#[test]
fn a_build_without_cuda_names_the_gpus_that_it_cannot_use() {
    let not_built = || Err(Absent::NotBuilt);
    let nothing = Environment::default();
    let inventory = Inventory::of(&Ok(seen(&["GPU-a", "GPU-b"])), &not_built(), &nothing);
    assert_eq!(uuids(&inventory.visible), ["GPU-a", "GPU-b"]);
    assert_eq!(inventory.usable(), []);
    assert_eq!(
        inventory.why_none.as_deref(),
        Some(
            "this machine has NVIDIA H200 and 1 more, and this build of muster has no CUDA: build it with \
             `cargo build --release --features cuda`"
        )
    );
}

#[test]
fn why_there_is_no_gpu_is_said_from_the_machine_upwards() {
    let no_library = || Err(Absent::NoLibrary("no such file".to_owned()));
    let fails = |why: &str| Err(Absent::Fails(why.to_owned()));
    let nothing = Environment::default();
    let table = [
        (
            no_library(),
            Err(Absent::NotBuilt),
            &nothing,
            "has no NVIDIA driver",
        ),
        (no_library(), no_library(), &nothing, "has no NVIDIA driver"),
        (
            fails("Driver/library version mismatch"),
            fails("unknown error"),
            &nothing,
            "does not answer: Driver/library version mismatch",
        ),
        (Ok(seen(&[])), Ok(by_cuda(&[])), &nothing, "knows no GPU"),
        (
            Ok(seen(&["GPU-a"])),
            Ok(by_cuda(&[])),
            &hiding("-1"),
            "CUDA_VISIBLE_DEVICES=\"-1\" hides the only GPU",
        ),
        (
            Ok(seen(&["GPU-a", "GPU-b"])),
            Err(Absent::NotBuilt),
            &hiding(""),
            "CUDA_VISIBLE_DEVICES=\"\" hides all 2 GPUs",
        ),
        (
            Ok(seen(&["GPU-a"])),
            no_library(),
            &nothing,
            "libcuda.so.1, is not there",
        ),
        (
            Ok(seen(&["GPU-a"])),
            fails("out of memory"),
            &nothing,
            "CUDA does not start: out of",
        ),
        (
            Ok(seen(&["GPU-a"])),
            Ok(by_cuda(&[])),
            &nothing,
            "CUDA sees none",
        ),
    ];
    for (nvml, cuda, env, expected) in table {
        let inventory = Inventory::of(&nvml, &cuda, env);
        let why = inventory.why_none.clone().unwrap_or_default();
        assert!(why.contains(expected), "{why:?} for {expected:?}");
        assert_eq!(inventory.usable(), []);
    }
}

#[test]
fn cuda_counts_and_nvml_tells_the_rest() {
    // CUDA puts the fastest first, and has read its variable already.
    let all = Ok(seen(&["GPU-a", "GPU-b", "GPU-c"]));
    let inventory = Inventory::of(&all, &Ok(by_cuda(&["GPU-c", "GPU-a"])), &hiding("0,1"));
    assert_eq!(uuids(inventory.usable()), ["GPU-c", "GPU-a"]);
    assert_eq!(
        inventory.visible[0].pci.as_deref(),
        Some("00000000:18:00.0")
    );
    assert_eq!(inventory.why_none, None);
    assert_eq!(
        numbers(&inventory),
        ["GPU-c", "GPU-a"],
        "a rank is shown what its worker counts"
    );
    // What a scheduler gives is not known to CUDA, which sees all.
    let slurm = Environment {
        slurm_job_gpus: Some("2".to_owned()),
        ..Environment::default()
    };
    let all = &["GPU-a", "GPU-b", "GPU-c"];
    let inventory = Inventory::of(&Ok(seen(all)), &Ok(by_cuda(all)), &slurm);
    assert_eq!(uuids(inventory.usable()), ["GPU-c"]);
    // Without NVML, what CUDA says is all that is known.
    let no_nvml = Err(Absent::NoLibrary(String::new()));
    let inventory = Inventory::of(&no_nvml, &Ok(by_cuda(&["GPU-a"])), &Environment::default());
    assert_eq!(uuids(inventory.usable()), ["GPU-a"]);
    assert_eq!(inventory.driver.unwrap().cuda, (13, 0));
}

#[test]
fn a_worker_lends_what_it_is_told_to() {
    let all = &["GPU-a", "GPU-b", "GPU-c"];
    let inventory = Inventory::of(&Ok(seen(all)), &Ok(by_cuda(all)), &Environment::default());
    let lent = |text: &str| {
        let choice: Choice = text.parse().unwrap();
        let lent = offered(&inventory, &choice)?;
        Ok::<_, String>(lent.iter().map(|(index, _)| *index).collect::<Vec<u32>>())
    };
    assert_eq!(lent("all"), Ok(vec![0, 1, 2]));
    assert_eq!(lent("none"), Ok(vec![]));
    assert_eq!(lent("2,0"), Ok(vec![0, 2]));
    assert_eq!(
        lent("3"),
        Err("there is no GPU 3: this worker sees 3, counted from 0".to_owned())
    );
    for text in ["", "some", "0,0", "-1", "0;1"] {
        assert!(text.parse::<Choice>().is_err(), "{text:?}");
    }
}

#[test]
fn a_worker_that_is_told_which_gpus_to_lend_says_why_it_cannot() {
    let none = Err(Absent::NoLibrary(String::new()));
    let inventory = Inventory::of(&none, &Err(Absent::NotBuilt), &Environment::default());
    assert_eq!(offered(&inventory, &Choice::All), Ok(Vec::new()));
    let refused = offered(&inventory, &Choice::Only(vec![0])).unwrap_err();
    assert!(refused.contains("no NVIDIA driver"), "{refused}");
}

#[test]
fn a_gpu_s_class_is_its_model_its_driver_and_the_build() {
    let all = seen(&["GPU-a"]);
    let inventory = Inventory::of(
        &Ok(all.clone()),
        &Ok(by_cuda(&["GPU-a"])),
        &Environment::default(),
    );
    let lent = offered(&inventory, &Choice::All).unwrap();
    let registered = registered(&lent, Some(&all.driver), "b1d");
    let class = registered[0].class.clone().unwrap();
    assert_eq!((class.build.as_str(), class.canary.as_str()), ("b1d", ""));
    assert_eq!(
        class.gpu,
        "NVIDIA H200, driver 580.65.06, compute capability 9.0"
    );
    assert_eq!(registered[0].memory_bytes, 150_754_820_096);
}
