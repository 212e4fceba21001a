//! What is said of machines that are written down here.

use expect_test::expect;
use muster_cluster::command::NumericsClass;
use muster_worker::devices::{Driver, Gpu, Inventory, Libdevice, Library};

use super::facts::{Clock, Disk, Drift, Facts, Gpus, Limits, Link, Peer, System};
use super::judge::{Finding, Status, judge};
use super::{as_json, as_text};

/// A machine without a GPU and without a fault.
fn plain() -> Facts {
    Facts {
        system: System {
            name: "Debian GNU/Linux 13 (trixie)".to_owned(),
            kernel: "6.12.0".to_owned(),
            architecture: "x86_64".to_owned(),
            processor: "AMD EPYC 9654".to_owned(),
            num_processors: 16,
            features: vec!["avx2", "fma", "avx512f"],
            memory_bytes: Some(64 << 30),
            available_bytes: Some(60 << 30),
            class: Ok(NumericsClass {
                canary: "0123456789abcdef".to_owned(),
                cpu: "x86_64:feed".to_owned(),
                ..NumericsClass::default()
            }),
        },
        gpus: Gpus {
            has_cuda: false,
            inventory: Inventory {
                driver: None,
                all: Vec::new(),
                visible: Vec::new(),
                why_none: Some("this machine has no NVIDIA driver".to_owned()),
            },
            libraries: ["libcuda", "libnvidia-ml", "libnvrtc", "libnccl"]
                .map(|name| Library {
                    name,
                    ..Library::default()
                })
                .to_vec(),
            libdevice: Libdevice::default(),
        },
        disk: Disk {
            folder: "/home/a/.local/state/muster".into(),
            magic: Some(0xef53),
            free_bytes: Some(500_000_000_000),
            sync_us: Ok(850),
        },
        clock: Clock {
            is_synchronized: Some(true),
            coordinator: None,
        },
        peers: Vec::new(),
        limits: Limits {
            open_files: Some(1 << 20),
            locked_bytes: None,
            shm_bytes: Some(32 << 30),
        },
    }
}

/// The same with two GPUs and all that they need.
fn with_gpus() -> Facts {
    let gpu = |uuid: &str, other: &str| Gpu {
        name: "NVIDIA H200".to_owned(),
        uuid: uuid.to_owned(),
        memory_bytes: 150_754_820_096,
        free_bytes: Some(150_100_000_000),
        pci: Some("00000000:18:00.0".to_owned()),
        compute: (9, 0),
        is_persistent: Some(true),
        nvlinks: vec![other.to_owned()],
        ..Gpu::default()
    };
    let all = vec![gpu("GPU-a", "GPU-b"), gpu("GPU-b", "GPU-a")];
    let mut facts = plain();
    for library in &mut facts.gpus.libraries {
        library.loaded = Some(format!("/usr/lib/{}.so", library.name).into());
        library.version = (library.name == "libnccl").then(|| "2.28.9".to_owned());
    }
    facts.gpus.has_cuda = true;
    facts.gpus.libdevice.found = Some("/usr/local/cuda/nvvm/libdevice/libdevice.10.bc".into());
    facts.gpus.inventory = Inventory {
        driver: Some(Driver {
            version: "580.65.06".to_owned(),
            cuda: (13, 0),
        }),
        visible: all.clone(),
        all,
        why_none: None,
    };
    facts
}

/// Only what is not in order.
fn faults(facts: &Facts) -> Vec<Finding> {
    let mut findings = judge(facts);
    findings.retain(|one| one.status != Status::Ok);
    findings
}

/// The only fault of a machine, as its status and its check; its advice holds `advice`.
fn only_fault(facts: &Facts, advice: &str) -> (Status, &'static str) {
    let faults = faults(facts);
    let [fault] = faults.as_slice() else {
        panic!("one fault was expected: {faults:?}");
    };
    assert!(fault.advice.contains(advice), "{fault:?}");
    (fault.status, fault.check)
}

#[test]
fn a_plain_machine_has_nothing_to_do() {
    expect![[r#"
            CHECK          FOUND
        ok  system         Debian GNU/Linux 13 (trixie), Linux 6.12.0, x86_64
        ok  processors     16 x AMD EPYC 9654 (avx2, fma, avx512f)
        ok  numerics       canary 0123456789ab, features x86_64:feed; machines of one job are alike in both
        ok  memory         64.4 GB of 68.7 GB available
        ok  GPUs           none: this machine has no NVIDIA driver
        ok  CUDA           this build is without it, and needs none of its libraries
        ok  state folder   /home/a/.local/state/muster (ext4)
        ok  disk space     500.0 GB free
        ok  disk sync      a small write reaches the disk in 850 us
        ok  clock          synchronized
        ok  open files     1048576
        ok  locked memory  any amount
        ok  shared memory  /dev/shm has 34.4 GB

        nothing to do"#]]
    .assert_eq(&as_text(&judge(&plain())));
}

#[test]
fn a_machine_with_gpus_shows_each_and_what_they_need() {
    let findings = judge(&with_gpus());
    let text = as_text(&findings[4..11]);
    expect![[r#"
            CHECK         FOUND
        ok  driver        580.65.06, for CUDA up to 13.0
        ok  GPU           cuda:0 NVIDIA H200, 150.8 GB, 150.1 GB free, compute capability 9.0, PCI 00000000:18:00.0, NVLink to 1
        ok  GPU           cuda:1 NVIDIA H200, 150.8 GB, 150.1 GB free, compute capability 9.0, PCI 00000000:18:00.0, NVLink to 0
        ok  libcuda       /usr/lib/libcuda.so
        ok  libnvidia-ml  /usr/lib/libnvidia-ml.so
        ok  libnvrtc      /usr/lib/libnvrtc.so
        ok  libnccl       2.28.9, /usr/lib/libnccl.so

        nothing to do"#]]
    .assert_eq(&text);
    assert_eq!(faults(&with_gpus()), []);
}

#[test]
fn what_a_gpu_lacks_comes_with_what_to_do() {
    let with = |change: fn(&mut Facts)| {
        let mut facts = with_gpus();
        change(&mut facts);
        facts
    };
    let facts = with(|facts| {
        facts.gpus.inventory.driver = Some(Driver {
            version: "550.54".to_owned(),
            cuda: (12, 4),
        });
    });
    assert_eq!(only_fault(&facts, "driver 580"), (Status::Fail, "driver"));

    let facts = with(|facts| facts.gpus.libraries[0].loaded = None);
    assert_eq!(only_fault(&facts, "--gpus all"), (Status::Fail, "libcuda"));

    // A Python package has it under a name that is not asked for.
    let facts = with(|facts| {
        let nccl = &mut facts.gpus.libraries[3];
        nccl.loaded = None;
        nccl.elsewhere = Some("/venv/nvidia/nccl/lib/libnccl.so.2".into());
    });
    let advice =
        "LD_LIBRARY_PATH: /venv/nvidia/nccl/lib, and make a link libnccl.so to libnccl.so.2";
    assert_eq!(only_fault(&facts, advice), (Status::Warn, "libnccl"));

    let facts = with(|facts| {
        facts.gpus.libdevice = Libdevice {
            elsewhere: Some("/venv/nvidia/cu13/nvvm/libdevice/libdevice.10.bc".into()),
            ..Libdevice::default()
        };
    });
    let advice = "export CUDA_PATH=/venv/nvidia/cu13";
    assert_eq!(only_fault(&facts, advice), (Status::Warn, "libdevice"));

    let facts = with(|facts| facts.gpus.inventory.visible[1].is_divided = true);
    assert_eq!(only_fault(&facts, "-mig 0"), (Status::Warn, "MIG"));
    let facts = with(|facts| facts.gpus.inventory.visible[1].is_persistent = Some(false));
    assert_eq!(
        only_fault(&facts, "nvidia-smi -pm 1"),
        (Status::Warn, "persistence")
    );
    let facts = with(|facts| facts.limits.shm_bytes = Some(64 << 20));
    assert_eq!(
        only_fault(&facts, "--shm-size"),
        (Status::Warn, "shared memory")
    );
    let facts = with(|facts| facts.limits.locked_bytes = Some(8 << 20));
    assert_eq!(
        only_fault(&facts, "ulimit -l"),
        (Status::Warn, "locked memory")
    );
}

#[test]
fn gpus_that_cannot_be_used_are_a_fault_only_where_they_are_wanted() {
    let mut facts = with_gpus();
    facts.gpus.has_cuda = false;
    facts.gpus.inventory.why_none = Some("this build of muster has no CUDA".to_owned());
    assert_eq!(
        only_fault(&facts, "a build with CUDA"),
        (Status::Warn, "GPUs")
    );

    let mut facts = with_gpus();
    facts.gpus.inventory.visible.clear();
    facts.gpus.inventory.why_none = Some("CUDA_VISIBLE_DEVICES=\"\" hides all".to_owned());
    assert_eq!(
        only_fault(&facts, "unset or correct"),
        (Status::Warn, "GPUs")
    );

    let mut facts = plain();
    facts.gpus.has_cuda = true;
    let faults = faults(&facts);
    assert_eq!(faults[0].check, "GPUs");
    assert!(faults[0].advice.contains("install NVIDIA's driver"));
}

#[test]
fn the_state_folder_must_be_a_disk_of_this_machine() {
    let with = |change: fn(&mut Disk)| {
        let mut facts = plain();
        change(&mut facts.disk);
        facts
    };
    let facts = with(|disk| disk.magic = Some(0x0102_1994));
    assert_eq!(
        only_fault(&facts, "gone after a reboot"),
        (Status::Warn, "state folder")
    );
    let facts = with(|disk| disk.magic = Some(0x6969));
    assert_eq!(
        only_fault(&facts, "its own machine"),
        (Status::Warn, "state folder")
    );
    let facts = with(|disk| disk.free_bytes = Some(5 << 30));
    assert_eq!(
        only_fault(&facts, "make room"),
        (Status::Warn, "disk space")
    );
    let facts = with(|disk| disk.free_bytes = Some(1 << 20));
    assert_eq!(
        only_fault(&facts, "make room"),
        (Status::Fail, "disk space")
    );
    let facts = with(|disk| disk.sync_us = Ok(45_000));
    assert_eq!(
        only_fault(&facts, "solid-state"),
        (Status::Warn, "disk sync")
    );
    let facts = with(|disk| disk.sync_us = Err("read-only file system".to_owned()));
    assert_eq!(
        only_fault(&facts, "let this user write"),
        (Status::Fail, "disk sync")
    );
}

#[test]
fn clocks_and_links_are_judged_by_what_they_cost() {
    let mut facts = plain();
    facts.clock.is_synchronized = None;
    assert_eq!(only_fault(&facts, "chrony"), (Status::Warn, "clock"));

    let drifts = |ms| {
        let mut facts = plain();
        let uncertain_ms = 2;
        facts.clock.coordinator = Some(Ok(Drift { ms, uncertain_ms }));
        facts
    };
    assert_eq!(faults(&drifts(-480)), []);
    let far = drifts(-2_000);
    assert_eq!(only_fault(&far, "on both"), (Status::Warn, "coordinator"));
    assert!(
        faults(&far)[0]
            .found
            .contains("2000 ms behind the coordinator's")
    );
    let mut facts = plain();
    facts.clock.coordinator = Some(Err("none answers".to_owned()));
    assert_eq!(
        only_fault(&facts, "--coordinator"),
        (Status::Fail, "coordinator")
    );

    let peer = |link| {
        let mut facts = plain();
        facts.peers.push(Peer {
            address: "10.0.0.2:4600".to_owned(),
            link,
        });
        facts
    };
    let link = |connect_us, mtu| Ok(Link { connect_us, mtu });
    assert_eq!(faults(&peer(link(180, Some(9_000)))), []);
    assert_eq!(faults(&peer(link(180, None))), []);
    let far = peer(link(34_000, Some(1_500)));
    assert_eq!(only_fault(&far, "nearer"), (Status::Warn, "peer"));
    let tunnel = peer(link(180, Some(1_380)));
    assert_eq!(only_fault(&tunnel, "tunnel"), (Status::Warn, "peer"));
    let none = peer(Err("connection refused".to_owned()));
    assert_eq!(only_fault(&none, "firewall"), (Status::Fail, "peer"));
}

#[test]
fn little_memory_and_old_processors_are_told() {
    let mut facts = plain();
    facts.system.available_bytes = Some(200 << 20);
    assert_eq!(
        only_fault(&facts, "end what needs it"),
        (Status::Warn, "memory")
    );
    let mut facts = plain();
    facts.system.features = Vec::new();
    assert_eq!(only_fault(&facts, "AVX2"), (Status::Warn, "processors"));
    // Processors of another kind have no AVX2 to lack.
    facts.system.architecture = "aarch64".to_owned();
    assert_eq!(faults(&facts), []);
    let mut facts = plain();
    facts.limits.open_files = Some(1_024);
    assert_eq!(
        only_fault(&facts, "ulimit -n"),
        (Status::Warn, "open files")
    );
}

#[test]
fn scripts_get_every_finding_and_one_word() {
    let mut facts = plain();
    let all = as_json(&judge(&facts));
    assert_eq!(all["ok"], true);
    assert_eq!(all["findings"][0]["check"], "system");
    assert_eq!(all["findings"][0]["advice"], serde_json::Value::Null);
    facts.disk.free_bytes = Some(0);
    let all = as_json(&judge(&facts));
    assert_eq!(all["ok"], false);
    let text = as_text(&judge(&facts));
    assert!(text.contains("FAIL disk space: make room"), "{text}");
}
