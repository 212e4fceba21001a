//! Where a coordinator is, as people write it.

use std::time::Duration;

use tonic::transport::Endpoint;

/// How long a connection may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the other end is asked whether it is there, and how long it may take to say so: a
/// machine that vanished closes no connection.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// The same where a caller can go elsewhere: another may lead already, and one that was only slow
/// costs a connection.
const CONNECT_TIMEOUT_OF_SEVERAL: Duration = Duration::from_secs(1);
const PING_INTERVAL_OF_SEVERAL: Duration = Duration::from_secs(1);
const PING_TIMEOUT_OF_SEVERAL: Duration = Duration::from_secs(3);

/// What can be connected to at `host:port`.
///
/// # Errors
/// When it is no such address; the text says what is wrong and gives an example.
pub fn endpoint(address: &str) -> Result<Endpoint, String> {
    let bad =
        |reason: String| format!("{address}: {reason}; expected host:port, such as 10.0.0.1:4600");
    let (_, port) = address
        .rsplit_once(':')
        .ok_or_else(|| bad("there is no port".to_owned()))?;
    port.parse::<u16>()
        .map_err(|_| bad(format!("{port:?} is no port")))?;
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| bad(error.to_string()))?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// The same for one of several coordinators: a machine that vanished is given up sooner.
///
/// # Errors
/// As [`endpoint`].
pub fn endpoint_of_several(address: &str) -> Result<Endpoint, String> {
    Ok(endpoint(address)?
        .connect_timeout(CONNECT_TIMEOUT_OF_SEVERAL)
        .http2_keep_alive_interval(PING_INTERVAL_OF_SEVERAL)
        .keep_alive_timeout(PING_TIMEOUT_OF_SEVERAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_address_is_refused_by_its_fault() {
        assert!(
            endpoint("10.0.0.1:4600").is_ok()
                && endpoint("[::1]:4600").is_ok()
                && endpoint("head:1").is_ok()
        );
        assert!(
            endpoint("head")
                .unwrap_err()
                .starts_with("head: there is no port; expected host:port")
        );
        assert!(endpoint("head:x").unwrap_err().contains("\"x\" is no port"));
        assert!(endpoint("a b:1").is_err());
    }
}
