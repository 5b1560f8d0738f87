//! Network ACLs, flattened: an ordered list becomes two prefix trees.
//!
//! An address is of the class of the narrowest prefix, of those that the list names, that
//! covers it: the entries that count for the whole class are then known. What the first of
//! them says of each protocol and port makes up the other tree.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use ocs_dataplane_shared::ipv6::layout as ipv6;
use ocs_dataplane_shared::layout::{
    self, ACL_BITS_ANY, ACL_BITS_PROTOCOL, ACL_CLASS_BITS, ACL_IPV6, ACL_SCOPE_BITS, AclClassKey,
    AclRuleKey, MAX_ACL_RULES,
};

use super::rules::port_prefixes;
use super::{CompileError, Entries, Numbers, check_size, raw, rules};
use crate::model::{Acl, AclEntry, Direction, Traffic};

/// Adds the entries of all ACLs in use.
pub(super) fn add(entries: &mut Entries, numbers: &Numbers) -> Result<(), CompileError> {
    let addresses: Vec<(IpNet, u32)> = numbers
        .addresses()
        .map(|((_, prefix), number)| (IpNet::V6(*prefix), number))
        .collect();
    for (acl, number) in numbers.acls() {
        for direction in [Direction::Ingress, Direction::Egress] {
            add_direction(entries, acl, number, direction)?;
            add_ipv6(entries, acl, number, direction, &addresses)?;
        }
        check_size("ACL_RULES", entries.acl_rules.len(), MAX_ACL_RULES)?;
        check_size("ACL_CLASSES", entries.acl_classes.len(), MAX_ACL_RULES)?;
    }
    Ok(())
}

fn add_direction(
    entries: &mut Entries,
    acl: &Acl,
    number: u32,
    direction: Direction,
) -> Result<(), CompileError> {
    let way = layout::Direction::from(direction) as u32;
    let list = List::of(acl, direction);
    let v4 = list.classes(Ipv4Net::default().into());
    for (class, prefix) in (0..).map(|index: u32| index << 2 | way).zip(v4) {
        if let IpNet::V4(covered) = prefix {
            let key = AclClassKey {
                acl: number,
                direction: way,
                address: raw(covered.network()),
            };
            let bits = ACL_SCOPE_BITS + u32::from(covered.prefix_len());
            entries.acl_classes.insert((key, bits), class);
        }
        add_class(entries, number, class, &list.counting(prefix))?;
    }
    Ok(())
}

/// Adds the classes of IPv6 addresses and places, of which each that is numbered has its own
/// unless it is that of all.
fn add_ipv6(
    entries: &mut Entries,
    acl: &Acl,
    number: u32,
    direction: Direction,
    addresses: &[(IpNet, u32)],
) -> Result<(), CompileError> {
    let way = layout::Direction::from(direction) as u32 | ACL_IPV6;
    let list = List::of(acl, direction);
    let everywhere = IpNet::from(Ipv6Net::default());
    let classes = list.classes(everywhere);
    let classes: BTreeMap<IpNet, u32> = classes
        .into_iter()
        .zip((0..).map(|index: u32| index << 2 | way))
        .collect();
    for (prefix, class) in &classes {
        add_class(entries, number, *class, &list.counting(*prefix))?;
    }
    let key = |address| AclClassKey {
        acl: number,
        direction: way,
        address,
    };
    // Most lists say of all IPv6 addresses the same.
    for (address, numbered) in addresses.iter().filter(|_| classes.len() > 1) {
        let narrowest = rules::narrowest(|net| classes.contains_key(net), *address);
        if let Some(class) = narrowest
            .filter(|prefix| *prefix != everywhere)
            .and_then(|prefix| classes.get(&prefix))
        {
            let key = key(ipv6::number(*numbered));
            entries.acl_classes.insert((key, ACL_CLASS_BITS), *class);
        }
    }
    if let Some(class) = classes.get(&everywhere) {
        entries.acl_classes.insert((key(0), ACL_SCOPE_BITS), *class);
    }
    Ok(())
}

/// An ACL's entries of one direction, in order.
struct List<'a>(Vec<(IpNet, &'a AclEntry)>);

impl<'a> List<'a> {
    fn of(acl: &'a Acl, direction: Direction) -> Self {
        let entries = acl.entries.iter();
        let ordered = entries
            .filter(|((way, _), _)| *way == direction)
            .map(|(_, entry)| (entry.cidr.trunc(), entry));
        Self(ordered.collect())
    }

    /// The prefixes that they name of a family, and that of all its addresses.
    fn classes(&self, everywhere: IpNet) -> BTreeSet<IpNet> {
        let named = self.0.iter().map(|(cidr, _)| *cidr);
        let mut found: BTreeSet<IpNet> = named.filter(|cidr| everywhere.contains(cidr)).collect();
        found.insert(everywhere);
        found
    }

    /// Those that count for a prefix.
    fn counting(&self, prefix: IpNet) -> Vec<&'a AclEntry> {
        let entries = self.0.iter();
        let counting = entries.filter(|(cidr, _)| cidr.contains(&prefix));
        counting.map(|(_, entry)| *entry).collect()
    }
}

fn add_class(
    entries: &mut Entries,
    acl: u32,
    class: u32,
    counting: &[&AclEntry],
) -> Result<(), CompileError> {
    let mut put = |protocol, port: u16, bits, allow| {
        let key = AclRuleKey {
            acl,
            class,
            protocol,
            reserved: 0,
            port: port.to_be(),
        };
        entries.acl_rules.insert((key, bits), u32::from(allow));
    };
    let all = counting
        .iter()
        .find(|entry| matches!(entry.traffic, Traffic::All));
    put(0, 0, ACL_BITS_ANY, all.is_some_and(|entry| entry.allow));
    let protocols: BTreeSet<u8> = counting
        .iter()
        .filter_map(|entry| protocol_of(&entry.traffic))
        .collect();
    for protocol in protocols {
        let allowed = allowed(counting, protocol)?;
        if allowed == [(0, u16::MAX)] {
            put(protocol, 0, ACL_BITS_PROTOCOL, true);
            continue;
        }
        put(protocol, 0, ACL_BITS_PROTOCOL, false);
        for (from, to) in allowed {
            for (port, bits) in port_prefixes(from, to) {
                // A whole protocol has been ruled out above.
                put(protocol, port, ACL_BITS_PROTOCOL + bits, true);
            }
        }
    }
    Ok(())
}

fn protocol_of(traffic: &Traffic) -> Option<u8> {
    match *traffic {
        Traffic::All => None,
        Traffic::Protocol(protocol)
        | Traffic::Ports { protocol, .. }
        | Traffic::Icmp { protocol, .. } => Some(protocol),
    }
}

/// Ports of a protocol, in order and apart, that the first entry that matches allows.
fn allowed(counting: &[&AclEntry], protocol: u8) -> Result<Vec<(u16, u16)>, CompileError> {
    let mut spans = Vec::new();
    for entry in counting {
        spans.push((spans_of(&entry.traffic, protocol)?, entry.allow));
    }
    let mut starts = BTreeSet::from([0u32]);
    for (from, to) in spans.iter().flat_map(|(spans, _)| spans) {
        starts.insert(u32::from(*from));
        starts.insert(u32::from(*to) + 1);
    }
    let starts: Vec<u32> = starts.into_iter().filter(|start| *start < 65_536).collect();
    let mut found: Vec<(u16, u16)> = Vec::new();
    for (index, start) in starts.iter().enumerate() {
        let end = starts.get(index + 1).copied().unwrap_or(65_536) - 1;
        let (Ok(first), Ok(last)) = (u16::try_from(*start), u16::try_from(end)) else {
            continue;
        };
        let decides = spans.iter().find(|(spans, _)| {
            spans
                .iter()
                .any(|(from, to)| (*from..=*to).contains(&first))
        });
        if !decides.is_some_and(|(_, allow)| *allow) {
            continue;
        }
        match found.last_mut() {
            Some((_, to)) if u32::from(*to) + 1 == *start => *to = last,
            _ => found.push((first, last)),
        }
    }
    Ok(found)
}

/// Ports that a traffic has of a protocol; of ICMP, types and codes.
fn spans_of(traffic: &Traffic, protocol: u8) -> Result<Vec<(u16, u16)>, CompileError> {
    let all = vec![(0, u16::MAX)];
    if protocol_of(traffic).is_some_and(|named| named != protocol) {
        return Ok(Vec::new());
    }
    match *traffic {
        Traffic::All | Traffic::Protocol(_) => Ok(all),
        Traffic::Ports { from, to, .. } if from <= to => Ok(vec![(from, to)]),
        Traffic::Ports { .. } => Err(CompileError::Traffic {
            group: "of a network ACL".to_owned(),
            traffic: format!("{traffic:?}"),
        }),
        Traffic::Icmp { kind, code, .. } => {
            let kinds = match (kind, code) {
                (None, None) => return Ok(all),
                (None, Some(_)) => 0..=u8::MAX,
                (Some(kind), _) => kind..=kind,
            };
            let (first, last) = code.map_or((0, u8::MAX), |code| (code, code));
            Ok(kinds
                .map(|kind| {
                    (
                        u16::from_be_bytes([kind, first]),
                        u16::from_be_bytes([kind, last]),
                    )
                })
                .collect())
        }
    }
}
