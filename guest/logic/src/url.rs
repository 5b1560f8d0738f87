//! `http://ADDRESS[:PORT][/PATH]`: the only URLs the probe follows.

use alloc::borrow::ToOwned;
use alloc::string::String;
use core::fmt;
use core::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Where `http-get` goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// The server; names are not resolved.
    pub server: SocketAddr,
    /// Starts with `/`, printable ASCII without blanks.
    pub path: String,
}

impl Url {
    /// Reads a URL; `None` where it is not of the one form that is served.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("http://")?;
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        if !path.bytes().all(|b| b.is_ascii_graphic()) {
            return None;
        }
        let server = match authority.parse() {
            Ok(server) => server,
            Err(_) => SocketAddr::new(host(authority)?, 80),
        };
        Some(Self {
            server,
            path: path.to_owned(),
        })
    }
}

/// An address without a port, of IPv6 in brackets.
fn host(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[') {
        Some(rest) => Some(rest.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?.into()),
        None => text.parse().ok().filter(IpAddr::is_ipv4),
    }
}

/// An address as it stands in a URL and in `Host`.
pub struct Host(pub IpAddr);

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(address) => address.fmt(f),
            IpAddr::V6(address) => write!(f, "[{address}]"),
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.server.port() == 80 {
            write!(f, "http://{}{}", Host(self.server.ip()), self.path)
        } else {
            write!(f, "http://{}{}", self.server, self.path)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn urls() {
        let url = Url::parse("http://10.0.0.1:8080/a/b?c=d").unwrap();
        assert_eq!(url.server, "10.0.0.1:8080".parse().unwrap());
        assert_eq!(url.path, "/a/b?c=d");
        assert_eq!(url.to_string(), "http://10.0.0.1:8080/a/b?c=d");
        assert_eq!(
            Url::parse("http://10.0.0.1").unwrap().to_string(),
            "http://10.0.0.1/"
        );
        for (text, server) in [
            ("http://[fd00:ec2::254]/latest/", "[fd00:ec2::254]:80"),
            ("http://[fd01::5]:8080/a", "[fd01::5]:8080"),
        ] {
            let url = Url::parse(text).unwrap();
            assert_eq!(url.server, server.parse().unwrap());
            assert_eq!(url.to_string(), text);
        }
        for bad in [
            "http://fd01::5/",
            "http://[fd01::5/",
            "http://[10.0.0.1]/",
            "",
            "https://10.0.0.1/",
            "http://host/",
            "http://10.0.0.1:0x50/",
            "http:///x",
            "http://10.0.0.1/a b",
            "http://10.0.0.1/a\r\nHost: x",
        ] {
            assert_eq!(Url::parse(bad), None, "{bad:?}");
        }
    }
}
