//! How messages between a worker and its ranks lie on their loopback socket: each behind its length,
//! a little-endian `u32`. Blocking reading is here; a shell that reads otherwise uses
//! [`check_len`] and prost.

use std::io::{self, Read};

use prost::Message;

/// The longest message, in bytes. A longer one is no message of ours.
pub const MAX_BYTES: usize = 16 << 20;

/// A message with its length before it.
///
/// # Panics
/// When the message is longer than [`MAX_BYTES`], which nothing that we build is.
#[must_use]
pub fn encode(message: &impl Message) -> Vec<u8> {
    let len = message.encoded_len();
    assert!(
        len <= MAX_BYTES,
        "a message of {len} bytes is longer than a frame may be"
    );
    let mut bytes = Vec::with_capacity(4 + len);
    bytes.extend(u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(message.encode_to_vec());
    bytes
}

/// The length of the message that follows.
///
/// # Errors
/// When no message is so long: what sent it speaks something else.
pub fn check_len(prefix: [u8; 4]) -> io::Result<usize> {
    let len = u32::from_le_bytes(prefix);
    let is_possible = usize::try_from(len).is_ok_and(|len| len <= MAX_BYTES);
    if !is_possible {
        let text = format!(
            "a length of {len} bytes, at most {MAX_BYTES} are possible: this is not our protocol"
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(len as usize)
}

/// The next message, or `None` at the end of the stream.
///
/// # Errors
/// When the stream fails, ends inside a message, or holds something else than our messages.
pub fn read<M: Message + Default>(stream: &mut impl Read) -> io::Result<Option<M>> {
    let mut prefix = [0; 4];
    if stream.read(&mut prefix[..1])? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut prefix[1..])?;
    let mut bytes = vec![0; check_len(prefix)?];
    stream.read_exact(&mut bytes)?;
    M::decode(&bytes[..])
        .map(Some)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1;

    #[test]
    fn messages_come_back_one_by_one() {
        let key = v1::RankKey {
            job: "job".to_owned(),
            history: 1,
            generation: 2,
            rank: 3,
            process: 4,
        };
        let started = v1::RankStarted {
            key: Some(key),
            pid: 77,
        };
        let bytes = [encode(&started), encode(&v1::RankStarted::default())].concat();
        let mut stream = &bytes[..];
        assert_eq!(read(&mut stream).unwrap(), Some(started));
        assert_eq!(read(&mut stream).unwrap(), Some(v1::RankStarted::default()));
        assert_eq!(read::<v1::RankStarted>(&mut stream).unwrap(), None);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let absurd = u32::MAX.to_le_bytes();
        assert!(
            read::<v1::RankStarted>(&mut &absurd[..])
                .unwrap_err()
                .to_string()
                .contains("not our protocol")
        );
        assert!(
            read::<v1::RankStarted>(&mut &[1, 0][..]).is_err(),
            "torn length"
        );
        assert!(
            read::<v1::RankStarted>(&mut &[9, 0, 0, 0, 1][..]).is_err(),
            "torn message"
        );
        assert!(
            read::<v1::RankStarted>(&mut &[2, 0, 0, 0, 0xff, 0xff][..]).is_err(),
            "garbage"
        );
    }
}
