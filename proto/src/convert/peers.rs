//! Where the ranks of a world listen, packed once for all of them. Addresses are what every rank has to
//! be told of every other one, since any two connect: 7 bytes for the first rank of a host and 3 for
//! each other one, where a text takes 20.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use prost::bytes::{Buf, BufMut, BytesMut};

use super::BadMessage;
use crate::v1;

const TEXT: u8 = 0;
const SAME_HOST: u8 = 1;
const V4: u8 = 4;
const V6: u8 = 6;

/// The addresses by rank, for the wire. Clones of the message share its bytes. A text beyond 65,535
/// bytes is no address, and goes as an empty one.
#[must_use]
pub fn peers<'a>(addresses: impl IntoIterator<Item = &'a str>) -> v1::Peers {
    let mut packed = BytesMut::new();
    let mut host = None;
    for address in addresses {
        let numbers = numbers(address);
        match numbers.map(|numbers| numbers.ip()) {
            Some(ip) if host == Some(ip) => packed.put_u8(SAME_HOST),
            Some(IpAddr::V4(ip)) => {
                packed.put_u8(V4);
                packed.put_slice(&ip.octets());
            }
            Some(IpAddr::V6(ip)) => {
                packed.put_u8(V6);
                packed.put_slice(&ip.octets());
            }
            None => {
                let length = u16::try_from(address.len()).unwrap_or_default();
                packed.put_u8(TEXT);
                packed.put_u16(length);
                packed.put_slice(&address.as_bytes()[..usize::from(length)]);
            }
        }
        if let Some(numbers) = numbers {
            packed.put_u16(numbers.port());
            host = Some(numbers.ip());
        }
    }
    let addresses = packed.freeze();
    v1::Peers { addresses }
}

/// An address as its host's and its port's numbers, if they are all that it says, in the way that it
/// would be written again.
fn numbers(address: &str) -> Option<SocketAddr> {
    let parsed: SocketAddr = address.parse().ok()?;
    let is_all = SocketAddr::new(parsed.ip(), parsed.port()).to_string() == address;
    is_all.then_some(parsed)
}

/// The addresses by rank, from the wire: what [`peers`] was given.
///
/// # Errors
/// Where the bytes end too early, or begin an address in no way that is known.
pub fn addresses(peers: &v1::Peers) -> Result<Vec<String>, BadMessage> {
    let mut rest = &peers.addresses[..];
    let mut addresses = Vec::new();
    let mut host = None;
    while !rest.is_empty() {
        match take(&mut rest, &mut host) {
            Some(address) => addresses.push(address),
            None => {
                return Err(BadMessage::Senseless {
                    what: "peers",
                    why: format!("behind {} addresses comes none", addresses.len()),
                });
            }
        }
    }
    Ok(addresses)
}

fn take(rest: &mut &[u8], host: &mut Option<IpAddr>) -> Option<String> {
    match rest.try_get_u8().ok()? {
        TEXT => {
            let length = usize::from(rest.try_get_u16().ok()?);
            let (text, behind) = rest.split_at_checked(length)?;
            *rest = behind;
            return Some(std::str::from_utf8(text).ok()?.to_owned());
        }
        SAME_HOST => {}
        V4 => *host = Some(Ipv4Addr::from_bits(rest.try_get_u32().ok()?).into()),
        V6 => *host = Some(Ipv6Addr::from_bits(rest.try_get_u128().ok()?).into()),
        _ => return None,
    }
    let port = rest.try_get_u16().ok()?;
    host.map(|host| SocketAddr::new(host, port).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_as_they_were() {
        let known = [
            "10.0.0.1:4600",
            "10.0.0.1:4601",
            "rank-7:99",
            "10.0.0.1:65535",
            "10.0.0.2:0",
            "[2001:db8::7]:4600",
            "[2001:db8::7]:4601",
            // Numbers that would not say all, or would be written otherwise.
            "[fe80::1%3]:4600",
            "[2001:DB8::7]:4600",
            "",
            "ü:1",
        ];
        assert_eq!(addresses(&peers(known)).unwrap(), known);
        assert_eq!(peers([]), v1::Peers::default());
    }

    #[test]
    fn eight_ranks_of_a_host_take_28_bytes() {
        let known: Vec<String> = (4000..4008)
            .map(|port| format!("10.0.0.1:{port}"))
            .collect();
        let packed = peers(known.iter().map(String::as_str));
        assert_eq!(packed.addresses.len(), 7 + 7 * 3);
    }

    #[test]
    fn what_is_cut_off_or_begins_otherwise_is_refused() {
        let whole = peers(["10.0.0.1:4600", "10.0.0.1:4601", "a:1", "[::1]:5"]);
        let complete = [7, 10, 16, 35];
        for length in 1..whole.addresses.len() {
            let cut = v1::Peers {
                addresses: whole.addresses.slice(..length),
            };
            assert_eq!(
                addresses(&cut).is_ok(),
                complete.contains(&length),
                "{length}"
            );
        }
        for bytes in [&[9_u8, 0, 0][..], &[1, 0, 80], &[0, 0, 1, 0xff]] {
            let peers = v1::Peers {
                addresses: bytes.to_vec().into(),
            };
            assert!(addresses(&peers).is_err(), "{bytes:?}");
        }
    }
}
