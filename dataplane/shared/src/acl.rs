//! Network ACLs: stateless, for what crosses a subnet's border.
//!
//! An ordered list is compiled flat: the other side's address has a class, the set of
//! entries that count for it, and what the first of them says of a protocol and port is
//! in a prefix tree. Two look-ups, however many entries.

use crate::layout::{ACL_IPV6, AclClassKey, AclRuleKey, Address, Direction};
use crate::maps::Maps;
use crate::parse::{Family, Ip, Part, Transport};

/// Whether an ACL lets a packet pass. A later fragment follows its first, which was asked.
#[inline(always)]
pub(crate) fn allows(
    maps: &impl Maps,
    acl: u32,
    direction: Direction,
    address: Address,
    ip: &Ip,
    ports: &Transport,
) -> bool {
    if acl == 0 || ip.part == Part::Later {
        return true;
    }
    let family = match ip.family {
        Family::V4 => 0,
        Family::V6 => ACL_IPV6,
    };
    let direction = direction as u32 | family;
    let what = u32::from(ports.rule_port) << 16 | u32::from(ip.protocol) << 8 | direction;
    look_up(maps, acl, address, what)
}

/// Not inlined: a function of its own has a stack of its own.
#[inline(never)]
fn look_up(maps: &impl Maps, acl: u32, address: Address, what: u32) -> bool {
    let class = AclClassKey {
        acl,
        direction: what & 0xff,
        address,
    };
    let Some(class) = maps.acl_class(&class) else {
        return false;
    };
    maps.acl_allows(&AclRuleKey {
        acl,
        class,
        protocol: (what >> 8) as u8,
        reserved: 0,
        port: (what >> 16) as u16,
    })
}
