//! A loader of another map layout takes a predecessor's place, whatever there is of it.

use std::net::Ipv6Addr;

use ocs_dataplane::fabric::FabricError;
use ocs_dataplane::model::Rule;
use ocs_dataplane::shared::layout::LAYOUT_VERSION;

use super::support::frames::{ACK, SYN, SYN_ACK, tcp};
use super::support::policy::{all_out, cidr, end, group, tcp_in};
use super::support::{chain, ipv6};
use super::{Pair, open};

/// A successor of another layout is killed before it has a policy, then between two links.
#[test]
fn a_succession_that_was_cut_off_is_done_again() {
    let mut pair = Pair::new();
    let wanted = pair.policy(open());
    pair.lab.apply(&wanted).expect("a policy");
    assert!(pair.speak(0, SYN).is_some());
    pair.lab.succeed();
    pair.lab.restart();
    assert!(pair.speak(1, SYN_ACK).is_some(), "by the predecessor");
    let links = |version| pair.lab.pins_of(version).join("links");
    let ifindex = pair.guests[0].ifindex.to_string();
    std::fs::rename(
        links(LAYOUT_VERSION - 1).join(&ifindex),
        links(LAYOUT_VERSION).join(&ifindex),
    )
    .expect("a link that moves");
    pair.lab.restart();
    pair.lab.apply(&wanted).expect("a policy");
    assert!(!pair.lab.pins_of(LAYOUT_VERSION - 1).exists());
    assert!(pair.speak(0, ACK).is_some(), "a tracked flow");
    pair.lab
        .apply(&pair.policy(vec![all_out()]))
        .expect("a narrower policy");
    assert!(
        pair.speak(1, ACK).is_some(),
        "a flow that the predecessor tracked"
    );
    assert!(pair.speak(1, SYN).is_none(), "a new flow");
}

/// Before layout 7 flow tables could not be mapped.
#[test]
fn flows_of_tables_that_are_no_shared_memory_are_carried_over() {
    let mut pair = Pair::new();
    pair.lab.apply(&pair.policy(open())).expect("a policy");
    assert!(pair.speak(0, SYN).is_some());
    pair.lab.succeed_unshared();
    pair.lab
        .apply(&pair.policy(vec![all_out()]))
        .expect("a narrower policy");
    assert!(pair.speak(1, SYN_ACK).is_some(), "a tracked flow");
    assert!(pair.speak(1, SYN).is_none(), "a new flow");
    assert!(!pair.lab.pins_of(6).exists());
}

/// A successor is killed while it removes its predecessor's pins, one by one: whatever is
/// left, the next one's policy is in force.
#[test]
fn what_is_left_of_a_predecessor_stands_in_no_ones_way() {
    let mut pair = Pair::new();
    let before = pair.lab.pins_of(LAYOUT_VERSION - 1);
    for left in ["maps without FLOWS", "links", "maps", ""] {
        pair.lab.apply(&pair.policy(open())).expect("a policy");
        assert!(pair.speak(1, SYN).is_some(), "a new flow");
        if left == "maps without FLOWS" {
            pair.lab.leave(LAYOUT_VERSION - 1);
            std::fs::remove_file(before.join("maps/FLOWS")).expect("a pin");
        } else {
            std::fs::create_dir_all(before.join(left)).expect("a folder");
        }
        pair.lab.restart();
        pair.lab
            .apply(&pair.policy(vec![]))
            .unwrap_or_else(|error| panic!("{left:?}: {}", chain(&error)));
        let fresh = tcp(
            end(&pair.ports[0].1, 2000),
            end(&pair.ports[1].1, 1000),
            SYN,
        );
        pair.guests[0].send(&fresh);
        pair.guests[1].hears_nothing();
        assert!(!before.exists(), "{left:?}");
    }
}

/// A link that cannot be swapped is an error until it can be, and keeps none of the others
/// from the new policy.
#[test]
fn a_link_that_stays_keeps_no_other() {
    let mut pair = Pair::new();
    pair.lab.apply(&pair.policy(open())).expect("a policy");
    pair.lab.succeed();
    let links = pair.lab.pins_of(LAYOUT_VERSION - 1).join("links");
    let others = ["0", "1000000", "a", "z"].map(|name| links.join(name));
    for no_link in &others {
        std::fs::create_dir(no_link).expect("a folder");
    }
    let narrower = pair.policy(vec![all_out()]);
    for _ in 0..2 {
        let refused = pair
            .lab
            .apply(&narrower)
            .expect_err("four that are no links");
        assert!(matches!(refused, FabricError::Link { .. }), "{refused}");
        assert!(pair.speak(1, SYN).is_none(), "the new policy");
        assert_eq!(pair.lab.inventory().expect("an inventory").links.len(), 2);
    }
    for no_link in &others {
        std::fs::remove_dir(no_link).expect("a folder");
    }
    pair.lab.apply(&narrower).expect("the same policy");
    assert!(!links.exists());
}

/// A flow knows an IPv6 address by its number, which is the same by the next layout.
#[test]
fn ipv6_flows_outlive_a_layout() {
    let mut pair = Pair::new();
    for (last, (_, port)) in (1..).zip(&mut pair.ports) {
        ipv6::give(port, Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, last));
    }
    let out = Rule {
        peer: cidr("::/0"),
        ..all_out()
    };
    let open = vec![out.clone(), tcp_in(1000, 1000, group("g"))];
    pair.lab.apply(&pair.policy(open)).expect("a policy");
    let ends = [0, 1].map(|index: usize| ipv6::end(&pair.ports[index].1, 1000));
    let speak = |pair: &mut Pair, from: usize, flags| {
        pair.guests[from].send(&ipv6::tcp(ends[from], ends[1 - from], flags));
        pair.guests[1 - from].poll()
    };
    assert!(speak(&mut pair, 0, SYN).is_some());
    for _ in 0..2 {
        pair.lab.succeed();
        pair.lab
            .apply(&pair.policy(vec![out.clone()]))
            .expect("a narrower policy");
        assert!(speak(&mut pair, 1, SYN_ACK).is_some(), "a tracked flow");
    }
    let other = ipv6::End {
        port: 2000,
        ..ends[1]
    };
    pair.guests[1].send(&ipv6::tcp(other, ends[0], SYN));
    pair.guests[0].hears_nothing();
}

/// Whose flow tables are of no form that is known is succeeded all the same.
#[test]
fn an_unknown_layout_is_succeeded_without_its_flows() {
    let mut pair = Pair::new();
    pair.lab.apply(&pair.policy(open())).expect("a policy");
    assert!(pair.speak(0, SYN).is_some());
    pair.lab.succeed();
    let newer = pair.lab.pins_of(LAYOUT_VERSION + 1);
    std::fs::rename(pair.lab.pins_of(LAYOUT_VERSION - 1), newer).expect("pins that move");
    pair.lab.restart();
    pair.lab
        .apply(&pair.policy(vec![all_out()]))
        .expect("a narrower policy");
    assert!(
        pair.speak(1, SYN_ACK).is_none(),
        "nobody knows of it any more"
    );
    pair.lab.apply(&pair.policy(open())).expect("a policy");
    assert!(pair.speak(0, SYN).is_some());
    assert!(pair.speak(1, SYN_ACK).is_some());
}
