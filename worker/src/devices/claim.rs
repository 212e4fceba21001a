//! That no two workers of a machine lend the same GPU. A claim is a socket whose name holds the GPU's
//! number: the kernel gives a name to one process, and takes it back when that ends, however it ends.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use super::Gpu;

/// The claims of this process, as long as they are held.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    sockets: Vec<UnixListener>,
}

impl Claims {
    /// Claims a GPU.
    ///
    /// # Errors
    /// Where another process has claimed it; the text says what to do.
    pub(crate) fn add(&mut self, index: u32, gpu: &Gpu) -> Result<(), String> {
        let name = &gpu.name;
        let socket = socket(&gpu.uuid).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => format!(
                "GPU {index} ({name}) is lent by another worker of this machine; say with --gpus which \
                 ones each lends"
            ),
            _ => format!("GPU {index} ({name}) cannot be claimed: {error}"),
        })?;
        self.sockets.push(socket);
        Ok(())
    }
}

fn socket(uuid: &str) -> io::Result<UnixListener> {
    let name = format!("muster/gpu/{uuid}");
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_claimed_once_until_it_is_given_back() {
        // A number of its own: claims of other processes of this machine are seen here.
        let uuid = format!("GPU-test-{}", std::process::id());
        let gpu = Gpu {
            name: "NVIDIA H200".to_owned(),
            uuid,
            ..Gpu::default()
        };
        let mut first = Claims::default();
        first.add(3, &gpu).unwrap();
        let refused = Claims::default().add(3, &gpu).unwrap_err();
        assert!(
            refused.contains("GPU 3 (NVIDIA H200) is lent by another worker"),
            "{refused}"
        );
        drop(first);
        assert_eq!(Claims::default().add(3, &gpu), Ok(()));
    }
}
