//! Where a provider may be: what its name resolves to is looked at before anybody connects.
//!
//! A name on the public internet that leads to this machine, its network, or the address where a cloud keeps its
//! machines' secrets has been taken over, or is a mistake. An address that the operator has written himself is meant.

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::net::lookup_host;

/// Resolves names to public addresses alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            // The port is set by whoever asks.
            let found: Vec<SocketAddr> = lookup_host((name.as_str(), 0)).await?.collect();
            let is_own = is_this_machine(name.as_str());
            let (good, bad): (Vec<_>, Vec<_>) =
                found.into_iter().partition(|address| is_public(address.ip()) || is_own && address.ip().is_loopback());
            match (good.is_empty(), bad.first()) {
                (true, Some(address)) => Err(format!(
                    "{} leads to {}, which is no public address; if that is meant, set private = true for the provider",
                    name.as_str(),
                    address.ip()
                )
                .into()),
                _ => Ok(Box::new(good.into_iter()) as Addrs),
            }
        })
    }
}

/// A name that never leaves this machine.
fn is_this_machine(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

/// Why a provider's address, as it is written, is not to be asked. `None`: it may be.
pub(crate) fn refused(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    let ip: IpAddr = host.trim_start_matches('[').trim_end_matches(']').parse().ok()?;
    let ip = ip.to_canonical();
    is_metadata(ip)
        .then(|| format!("{ip} is where clouds keep the secrets of their machines; if it is meant, set private = true"))
}

/// Link-local addresses, where machines of clouds find their own credentials, and their like over IPv6.
fn is_metadata(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4 == Ipv4Addr::new(100, 100, 100, 200),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6 == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    }
}

/// True for what anybody on the internet may have.
fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => {
            let head = v6.segments();
            // NAT64 and 6to4 carry an address of the other kind.
            let inner = match head {
                [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some((high, low)),
                [0x2002, high, low, ..] => Some((high, low)),
                _ => None,
            };
            if let Some((high, low)) = inner {
                return is_public_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
            }
            // Global unicast, without documentation and Teredo.
            head[0] & 0xe000 == 0x2000 && !matches!(head, [0x2001, 0 | 0xdb8, ..])
        }
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let benchmarks = a == 198 && (b == 18 || b == 19);
    let special = (a, b, c) == (192, 0, 0);
    !(a == 0
        || ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_documentation()
        || shared
        || benchmarks
        || special
        // Multicast, reserved, broadcast.
        || a >= 224)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_addresses_are_told_from_others() {
        for public in ["1.1.1.1", "93.184.216.34", "100.128.0.1", "2606:4700::1111", "2a00:1450::1", "64:ff9b::101:101"]
        {
            assert!(is_public(public.parse().expect("address")), "{public}");
        }
        for other in [
            "0.0.0.0",
            "10.0.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "198.18.0.1",
            "192.0.0.8",
            "192.0.2.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::1",
        ] {
            assert!(!is_public(other.parse().expect("address")), "{other}");
        }
    }

    #[test]
    fn what_the_operator_wrote_is_meant_but_for_where_secrets_are() {
        let refused = |url: &str| refused(&Url::parse(url).expect("a URL"));
        for good in ["http://127.0.0.1:11434", "http://10.0.0.5/v1", "https://api.example.org", "http://[::1]:8080"] {
            assert_eq!(refused(good), None, "{good}");
        }
        for bad in [
            "http://169.254.169.254/latest",
            "http://[fe80::1]/",
            "http://[fd00:ec2::254]/",
            "http://[::ffff:169.254.169.254]",
        ] {
            assert!(refused(bad).is_some(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_home_is_refused_unless_it_says_so() {
        let resolve =
            async |name: &str| PublicOnly.resolve(name.parse().expect("a name")).await.map(|found| found.count());
        assert!(resolve("localhost").await.expect("this machine") > 0);
        // A literal passes through the resolver of some systems; it is no public address either.
        let error = resolve("127.0.0.1").await.expect_err("refused").to_string();
        assert!(error.contains("no public address"), "{error}");
    }
}
