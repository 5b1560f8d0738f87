//! What a change of groups costs: map elements that are written, among 10,000 mappings.

mod support;

use std::net::{IpAddr, Ipv4Addr};

use ocs_dataplane::model::{GroupId, Mac, Policy, Remote, Vni};
use support::policy::{all_out, group, policy, port, tcp_in};
use support::{Guest, Lab};

const MAPPINGS: u32 = 10_000;

fn groups(names: &[&str]) -> std::collections::BTreeSet<GroupId> {
    names.iter().map(|name| GroupId((*name).into())).collect()
}

fn address(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(
        u32::from(Ipv4Addr::new(10, 1, 0, 0)) + number,
    ))
}

/// A port of "web", which lets "app" and "db" in, and one of "app", which lets "db" in,
/// among many on another host.
fn many(lab: &Lab) -> (Policy, [Guest; 2]) {
    let guests = [Guest::new(lab, "tap-a"), Guest::new(lab, "tap-b")];
    let [a, b] = &guests;
    let a = port(a.ifindex, 1, [10, 0, 0, 10], &["web"], [169, 254, 1, 1]);
    let b = port(b.ifindex, 1, [10, 0, 0, 11], &["app"], [169, 254, 1, 2]);
    let web = vec![
        all_out(),
        tcp_in(80, 80, group("app")),
        tcp_in(81, 81, group("db")),
    ];
    let app = vec![all_out(), tcp_in(90, 90, group("db"))];
    let mut desired = policy([a, b], [("web", web), ("app", app), ("db", vec![])]);
    for number in 0..MAPPINGS {
        let remote = Remote {
            host: Ipv4Addr::new(192, 0, 2, 2),
            mac: Mac([2, 0, 0, 0, 0, 9]),
            groups: groups(&[["app", "db"][number as usize % 2]]),
            forwards: false,
        };
        desired.remotes.insert((Vni(1), address(number)), remote);
    }
    (desired, guests)
}

#[test]
fn a_change_of_groups_costs_what_it_changes() {
    let lab = Lab::new();
    let (mut policy, _guests) = many(&lab);
    let writes = |policy: &Policy| {
        let began = std::time::Instant::now();
        let writes = lab.apply(policy).expect("a policy").map_writes;
        println!("{writes} entries in {:?}", began.elapsed());
        writes
    };
    assert!(writes(&policy) > MAPPINGS as usize);
    assert_eq!(writes(&policy), 0);

    let key = (Vni(1), address(0));
    let set = |policy: &mut Policy, names: &[&str]| {
        policy.remotes.get_mut(&key).expect("it").groups = groups(names);
    };
    set(&mut policy, &["db"]);
    assert_eq!(writes(&policy), 1, "a known set: one entry an address");

    // A new set, whose groups rules of both policies here name: each of those rules is one
    // entry more, all of them before the address has the set.
    set(&mut policy, &["app", "db"]);
    assert_eq!(writes(&policy), 1 + 3, "a new set");
    set(&mut policy, &["db"]);
    assert_eq!(writes(&policy), 1 + 3, "a set that nobody has any more");

    // A port here: who sends, and who receives.
    let (id, port) = policy.ports.iter_mut().next().expect("a port");
    let id = id.clone();
    port.groups = groups(&["app"]);
    let known = writes(&policy);
    let rules_of_web = 4;
    assert!(
        known <= 2 + rules_of_web,
        "{id:?}: {known} entries, those of a policy that holds for nobody now among them"
    );
}
