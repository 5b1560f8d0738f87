//! The names of a VPC: those that EC2 forms of addresses, and the addresses of those names.
//!
//! ```text
//!   ip-10-0-0-5.ec2.internal                 10.0.0.5, where the VPC has that address
//!   5.0.0.10.in-addr.arpa                    ip-10-0-0-5.ec2.internal
//!   ec2-198-51-100-7.compute-1.amazonaws.com the private address that it stands for, else it
//! ```
//! (Amazon VPC User Guide, "DNS attributes for your VPC".) Names of private addresses that
//! are no VPC's are nobody's, as are those of other regions: the host's resolver is not asked
//! for them. No name has an IPv6 address, and no IPv6 address of a VPC's a name: EC2 gives
//! those to resource names (`i-….ec2.internal`) alone, which no subnet here can switch on.

use crate::responder::record::Record;
use hickory_proto::rr::rdata::{A, PTR};
use hickory_proto::rr::{Name, RData, RecordType};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Address space that means something inside one network alone (RFC 1918, 3927, 6598).
const PRIVATE: [(Ipv4Addr, u8); 6] = [
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
];

/// The same of IPv6 (RFC 6303 §4.3, RFC 4193, RFC 4291).
const PRIVATE_IPV6: [(Ipv6Addr, u8); 4] = [
    (Ipv6Addr::UNSPECIFIED, 128),
    (Ipv6Addr::LOCALHOST, 128),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
];

/// Where all regions' names of private addresses are.
const PRIVATE_ZONES: [&str; 2] = ["ec2.internal", "compute.internal"];

/// What a name is to an ENI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It has such records: this one.
    Known(RData),
    /// It is there, and has no such records.
    NoData,
    /// There is none.
    NoName,
    /// Others know.
    Elsewhere,
}

/// Looks a name up.
pub fn look_up(record: &Record, name: &Name, kind: RecordType) -> Finding {
    let labels: Vec<String> = name
        .iter()
        .map(|label| String::from_utf8_lossy(label).to_ascii_lowercase())
        .collect();
    let region = record.instance.region.as_str();
    if let Some(host) = below(&labels, &private_zone(region)) {
        return match host {
            [] => Finding::NoData,
            [label] => match address("ip-", label).filter(|ip| is_own(record, *ip)) {
                Some(ip) => given(kind, RecordType::A, RData::A(A(ip))),
                None => Finding::NoName,
            },
            _ => Finding::NoName,
        };
    }
    if PRIVATE_ZONES
        .iter()
        .any(|zone| below(&labels, zone).is_some())
    {
        return Finding::NoName;
    }
    if let Some([label]) = below(&labels, &public_zone(region))
        && let Some(public) = address("ec2-", label)
    {
        let ip = stood_for(record, public).unwrap_or(public);
        return given(kind, RecordType::A, RData::A(A(ip)));
    }
    let is_reverse = ["in-addr.arpa", "ip6.arpa"]
        .iter()
        .any(|zone| below(&labels, zone).is_some());
    match name.parse_arpa_name() {
        Ok(IpNet::V4(net)) if is_reverse => reverse(record, net, kind),
        Ok(IpNet::V6(net)) if is_reverse => reverse_ipv6(record, net),
        _ => Finding::Elsewhere,
    }
}

fn reverse_ipv6(record: &Record, net: Ipv6Net) -> Finding {
    let own = record.own_interface().map(|own| &own.ipv6.vpc_cidrs);
    let own = own.into_iter().flatten();
    let own = own.filter_map(|cidr| cidr.parse::<Ipv6Net>().ok());
    let private = PRIVATE_IPV6
        .iter()
        .filter_map(|(base, length)| Ipv6Net::new(*base, *length).ok());
    if own.chain(private).any(|block| block.contains(&net)) {
        return Finding::NoName;
    }
    Finding::Elsewhere
}

fn reverse(record: &Record, net: Ipv4Net, kind: RecordType) -> Finding {
    let ip = net.addr();
    if net.prefix_len() == 32 && is_own(record, ip) {
        let [a, b, c, d] = ip.octets();
        let zone = private_zone(&record.instance.region);
        return match Name::from_ascii(format!("ip-{a}-{b}-{c}-{d}.{zone}.")) {
            Ok(name) => given(kind, RecordType::PTR, RData::PTR(PTR(name))),
            Err(_) => Finding::NoName,
        };
    }
    let private = PRIVATE
        .iter()
        .filter_map(|(base, length)| Ipv4Net::new(*base, *length).ok())
        .any(|block| block.contains(&ip) && net.prefix_len() >= block.prefix_len());
    if private {
        return Finding::NoName;
    }
    Finding::Elsewhere
}

fn given(asked: RecordType, kind: RecordType, data: RData) -> Finding {
    if asked == kind || asked == RecordType::ANY {
        Finding::Known(data)
    } else {
        Finding::NoData
    }
}

/// The labels before a zone's, where the name is in the zone.
fn below<'a>(labels: &'a [String], zone: &str) -> Option<&'a [String]> {
    let zone: Vec<&str> = zone.split('.').collect();
    let host = labels.len().checked_sub(zone.len())?;
    let same = labels[host..].iter().map(String::as_str).eq(zone);
    same.then(|| &labels[..host])
}

/// Whose names EC2 forms of a region's private addresses.
pub fn private_zone(region: &str) -> String {
    match region {
        "us-east-1" => "ec2.internal".to_owned(),
        _ => format!("{region}.compute.internal"),
    }
}

fn public_zone(region: &str) -> String {
    match region {
        "us-east-1" => "compute-1.amazonaws.com".to_owned(),
        _ => format!("{region}.compute.amazonaws.com"),
    }
}

/// The address in `PREFIXa-b-c-d`.
fn address(prefix: &str, label: &str) -> Option<Ipv4Addr> {
    let text = label.strip_prefix(prefix)?.replace('-', ".");
    text.parse().ok()
}

/// The VPC has that address.
fn is_own(record: &Record, ip: Ipv4Addr) -> bool {
    let Some(interface) = record.own_interface() else {
        return false;
    };
    let more = interface.facts.vpc_cidrs.iter();
    let more = more.filter_map(|cidr| cidr.parse::<Ipv4Net>().ok());
    more.chain([interface.vpc_cidr])
        .any(|cidr| cidr.contains(&ip))
}

/// The private address of the instance that a public one stands for.
fn stood_for(record: &Record, public: Ipv4Addr) -> Option<Ipv4Addr> {
    let pairs = record.interfaces.iter().flat_map(|i| &i.facts.publics);
    pairs
        .filter(|(ip, _)| *ip == public)
        .map(|(_, private)| *private)
        .next()
}
