//! What a device really computes: operations and kernels beside the host's, and NCCL among processes.
//! Not here: whether drivers and libraries are there at all, which is looked at without them.

use muster_cluster::Device;
use muster_models::{Checked, Twin};

use super::judge::{Finding, Status};

/// Values that the kernels are tried on: as many as 16 MiB hold.
const NUM_ELEMENTS: usize = 4 << 20;

/// Tries a device, and says how it did.
pub(super) fn on(device: Device) -> Vec<Finding> {
    match muster_models::tensors(device) {
        Err(error) => vec![Finding {
            check: "compute",
            status: Status::Fail,
            found: error.to_string(),
            advice: String::new(),
        }],
        Ok(tensors) => {
            let checked = muster_models::smoke(&tensors);
            let twins = muster_models::twins(&tensors, NUM_ELEMENTS);
            let operations = checked.iter().map(|one| of_operation(device, one));
            let kernels = twins.iter().map(|one| of_kernel(device, one));
            operations.chain(kernels).collect()
        }
    }
}

fn of_operation(device: Device, checked: &Checked) -> Finding {
    let found = match &checked.difference {
        Ok(difference) => format!(
            "{device}, {}: {difference:.1e} from the host, {:.0e} is rounding",
            checked.name, checked.tolerance
        ),
        Err(reason) => format!("{device}, {}: {reason}", checked.name),
    };
    let advice = match checked.is_good() {
        true => String::new(),
        false => "models that use this operation do not train on this device: report it with the \
                  versions above, and write workers.device = \"cpu\" meanwhile"
            .to_owned(),
    };
    let status = if checked.is_good() {
        Status::Ok
    } else {
        Status::Fail
    };
    Finding {
        check: "operation",
        status,
        found,
        advice,
    }
}

fn of_kernel(device: Device, twin: &Twin) -> Finding {
    let name = twin.name;
    let (status, found) = match &twin.is_same {
        Ok(true) => (
            Status::Ok,
            format!("{device}, {name}: the host's bits, {:.1?}", twin.time),
        ),
        Ok(false) => (Status::Fail, format!("{device}, {name}: other bits")),
        Err(reason) => (Status::Fail, format!("{device}, {name}: {reason}")),
    };
    let advice = match status {
        Status::Fail => "no job runs rightly on this device: report it with the versions above",
        _ => "",
    };
    Finding {
        check: "kernel",
        status,
        found,
        advice: advice.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_wrong_operation_and_a_kernel_with_other_bits_fail_with_advice() {
        let operation = |difference| Checked {
            name: "relu",
            difference,
            tolerance: 1e-5,
        };
        let device = Device::Cuda(1);
        let good = of_operation(device, &operation(Ok(1e-6)));
        assert_eq!((good.status, good.advice.as_str()), (Status::Ok, ""));
        for bad in [Ok(0.5), Err("no kernel".to_owned())] {
            let bad = of_operation(device, &operation(bad));
            assert!(bad.found.starts_with("cuda:1, relu: "), "{bad:?}");
            assert!(bad.status == Status::Fail && !bad.advice.is_empty());
        }
        for (is_same, status) in [
            (Ok(true), Status::Ok),
            (Ok(false), Status::Fail),
            (Err("gone".to_owned()), Status::Fail),
        ] {
            let twin = Twin {
                name: "hash",
                is_same,
                time: Duration::from_millis(3),
            };
            assert_eq!(of_kernel(device, &twin).status, status);
        }
    }
}
