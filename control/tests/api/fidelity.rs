//! Walks the model: every parameter of every offered action is honoured or
//! refused by name, none is ignored. What was found is `docs/ec2-fidelity.md`;
//! `OCS_WRITE_DOCS=1 cargo test -p ocs-control fidelity` writes it anew.

use crate::evidence;
use crate::support::{Control, text};
use ocs_control::wire::shapes::{Shape, ShapeId};
use ocs_control::wire::{Model, ec2};
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Deepest structures in requests that are walked.
const DEPTH: usize = 6;

/// Every scalar below a shape: query name and a value that passes the model.
fn leaves(
    model: &Model,
    shape: ShapeId,
    name: &str,
    depth: usize,
    found: &mut Vec<(String, String)>,
) {
    if depth == 0 {
        return;
    }
    match model.shape(shape) {
        Shape::Structure { members, .. } => {
            for member in members {
                let name = if name.is_empty() {
                    member.query.clone()
                } else {
                    format!("{name}.{}", member.query)
                };
                leaves(model, member.shape, &name, depth - 1, found);
            }
        }
        Shape::List { member, .. } => leaves(model, *member, &format!("{name}.1"), depth, found),
        Shape::String {
            values: Some(values),
        } => found.push((name.to_owned(), values[values.len() - 1].clone())),
        Shape::String { values: None } => found.push((name.to_owned(), "x".to_owned())),
        Shape::Integer { min, .. } => found.push((name.to_owned(), (*min).max(7).to_string())),
        Shape::Float => found.push((name.to_owned(), "7.5".to_owned())),
        Shape::Boolean => found.push((name.to_owned(), "true".to_owned())),
        Shape::Blob => found.push((name.to_owned(), "eA==".to_owned())),
        Shape::Map { .. } => {}
        Shape::Timestamp(_) => found.push((name.to_owned(), "2026-01-01T00:00:00Z".to_owned())),
    }
}

/// The required scalars of a structure, and of the structures that lead to one
/// of its members.
pub fn required(
    model: &Model,
    shape: ShapeId,
    name: &str,
    wanted: &str,
    found: &mut Vec<(String, String)>,
) {
    let Shape::Structure {
        members,
        required: names,
    } = model.shape(shape)
    else {
        if let Shape::List { member, .. } = model.shape(shape) {
            required(model, *member, &format!("{name}.1"), wanted, found);
        }
        return;
    };
    for member in members {
        let path = if name.is_empty() {
            member.query.clone()
        } else {
            format!("{name}.{}", member.query)
        };
        if names.contains(&member.name) {
            let mut below = Vec::new();
            leaves(model, member.shape, &path, 1, &mut below);
            found.extend(below);
        } else if wanted == path || wanted.starts_with(&format!("{path}.")) {
            required(model, member.shape, &path, wanted, found);
        }
    }
}

#[test]
fn fidelity_no_parameter_is_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(dir.path());
    let model = ec2();
    let mut table = String::new();
    let (codes, observers) = (evidence::codes(), evidence::observers());
    let mut unobserved = Vec::new();
    let (mut all_honoured, mut all_refused) = (0, 0);
    for (action, operation) in &model.operations {
        let (mut honoured, mut refused) = (Vec::new(), Vec::new());
        let mut found = Vec::new();
        if let Some(input) = operation.input {
            leaves(model, input, "", DEPTH, &mut found);
        }
        for (name, value) in found {
            let mut params = vec![(name.clone(), value)];
            let input = operation.input.map(|input| model.members(input));
            let dry = input.is_some_and(|all| all.iter().any(|m| m.name == "DryRun"));
            if name != "DryRun" && dry {
                params.push(("DryRun".to_owned(), "true".to_owned()));
            }
            let mut needed = Vec::new();
            if let Some(input) = operation.input {
                required(model, input, "", &name, &mut needed);
            }
            for need in needed {
                if params.iter().all(|(known, _)| *known != need.0) {
                    params.push(need);
                }
            }
            let pairs: Vec<(&str, &str)> = params
                .iter()
                .map(|(a, b)| (a.as_str(), b.as_str()))
                .collect();
            let (status, body) = control.call(action, &pairs);
            let code = text(&body, "Code").into_iter().next().unwrap_or_default();
            assert!(
                (status != 200 || !dry && action.starts_with("Describe"))
                    && !matches!(
                        code.as_str(),
                        "InternalError" | "UnknownParameter" | "MissingAction"
                    ),
                "{action} {pairs:?}: {status} {body}"
            );
            let refusal = |(name, _): &(&str, &str)| {
                body.contains(&format!(
                    "The parameter {name} is not supported by this cloud."
                ))
            };
            if pairs.iter().any(refusal) {
                &mut refused
            } else {
                &mut honoured
            }
            .push(short(&name));
        }
        (all_honoured, all_refused) = (all_honoured + honoured.len(), all_refused + refused.len());
        let total = honoured.len() + refused.len();
        let seen = observers.get(&evidence::method(action));
        let effect = seen.and_then(|tests| tests.first()).map(String::as_str);
        let unseen = UNSEEN.iter().find(|(known, _)| known == action);
        let unseen = unseen.map(|(_, why)| *why);
        if effect.is_none() && !READS.iter().any(|verb| action.starts_with(verb)) {
            unobserved.push(action.as_str());
        }
        writeln!(
            table,
            "| {action} | {}/{}/{total} | {} | {} | {} | {} |",
            honoured.len(),
            refused.len(),
            filters(&control, model, action),
            codes.get(action).map_or(0, BTreeSet::len),
            effect.or(unseen).unwrap_or_default(),
            groups(&refused)
        )
        .unwrap();
    }
    assert_eq!(
        unobserved,
        UNSEEN.map(|(action, _)| action),
        "no system test makes these changes"
    );
    assert!(
        all_honoured > 100 && all_refused > 50,
        "{all_honoured} {all_refused}"
    );
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/ec2-fidelity.md");
    let text = format!("{}{table}", HEAD.trim_start());
    if std::env::var_os("OCS_WRITE_DOCS").is_some() {
        std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs")).unwrap();
        std::fs::write(path, &text).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    let differs = text.lines().zip(written.lines()).find(|(a, b)| a != b);
    assert!(
        written == text,
        "docs/ec2-fidelity.md is out of date: run with OCS_WRITE_DOCS=1\n{differs:#?}"
    );
}

/// Verbs of actions that change nothing.
const READS: [&str; 2] = ["Describe", "Get"];

/// Actions that change nothing which a guest, a peer or a packet could tell, and what there
/// is instead. Every other action that changes something is made by a system test; a new one
/// is not to join these.
const UNSEEN: [(&str, &str); 4] = [
    ("MonitorInstances", MONITORING),
    ("UnmonitorInstances", MONITORING),
    ("UpdateSecurityGroupRuleDescriptionsEgress", DESCRIPTION),
    ("UpdateSecurityGroupRuleDescriptionsIngress", DESCRIPTION),
];
const MONITORING: &str = "no guest sees it: who reads `ocs metrics` chooses how often";
const DESCRIPTION: &str = "no guest sees it: a text for those who read the rules";

/// How many of an action's documented filters it takes, of how many; nothing where it has
/// none.
fn filters(control: &Control, model: &Model, action: &str) -> String {
    let operation = &model.operations[action];
    if operation.filters.is_empty() {
        return String::new();
    }
    let taken = operation.filters.iter().filter(|name| {
        let mut params = vec![
            ("Filter.1.Name".to_owned(), (*name).clone()),
            ("Filter.1.Value.1".to_owned(), "x".to_owned()),
        ];
        let mut needed = Vec::new();
        if let Some(input) = operation.input {
            required(model, input, "", "", &mut needed);
        }
        params.extend(needed);
        let pairs: Vec<(&str, &str)> = params
            .iter()
            .map(|(a, b)| (a.as_str(), b.as_str()))
            .collect();
        !control.call(action, &pairs).1.contains("The filter '")
    });
    format!("{}/{}", taken.count(), operation.filters.len())
}

/// Without list indices.
fn short(name: &str) -> String {
    let parts: Vec<&str> = name
        .split('.')
        .filter(|part| part.parse::<u32>().is_err())
        .collect();
    parts.join(".")
}

/// Refused names, those of one structure together.
fn groups(names: &[String]) -> String {
    let mut tops: Vec<(String, Vec<&str>)> = Vec::new();
    for name in names {
        let (top, rest) = name.split_once('.').unwrap_or((name, ""));
        match tops.iter_mut().find(|(known, _)| known == top) {
            Some((_, list)) => list.push(rest),
            None => tops.push((top.to_owned(), vec![rest])),
        }
    }
    let show = |(top, rest): &(String, Vec<&str>)| {
        let rest: Vec<&str> = rest
            .iter()
            .copied()
            .filter(|rest| !rest.is_empty())
            .collect();
        if rest.is_empty() {
            top.clone()
        } else {
            format!("{top} ({})", rest.join(", "))
        }
    };
    tops.iter().map(show).collect::<Vec<_>>().join(", ")
}

const HEAD: &str = r"
# How close this is to EC2

Every action below is EC2's, version 2016-11-15, by AWS's own service model
(`control/model/ec2.json`, made by `cargo xtask gen-ec2`). A parameter is honoured
or refused by name with `UnsupportedOperation`; none is ignored in silence. One that
carries the value which EC2 would assume anyway is accepted. An action of EC2's that
is not in the table answers `UnsupportedOperation`, a name that EC2 does not have
`InvalidAction`. This file is written and checked by a test
(`control/tests/api/fidelity.rs`).

## Where behaviour differs

* **The resolver** of a VPC answers for the names and addresses of that VPC's blocks, whether or
  not something has them, and asks the resolvers that the host's `/etc/resolv.conf` named when its
  responder started for all else.
  Public names of other instances lead to their public addresses. Where enableDnsSupport is off
  it refuses rather than stay silent.
* **Public addresses** come from the blocks that the operator gives (`--public-cidrs`), all
  of whose addresses are used. Without a block instances simply have none, whatever their
  subnet says, and `AssociatePublicIpAddress=true` is refused. Where a block is used up, who
  asks for an address gets InsufficientAddressCapacity, and who has one by
  `MapPublicIpOnLaunch` alone goes without.
* **Instance identity documents** are signed on the curve P-256, by a key a region
  (`signature`, `pkcs7`; the certificate is `pki/identity/REGION.pem` of the operator's state
  folder). There is no `rsa2048`.
* **Reads are strongly consistent.** EC2's are eventually so: what a call has answered,
  every later call sees.
* **Volume types** gp2, gp3, io1, io2 and standard, each held to the operations, bytes and
  burst credits that EC2 documents, counted as EC2 counts. A volume has 16 TiB at most.
  Of magnetic ones (standard) EC2 gives ranges: here 200 operations and 90 MiB a second.
* **GetConsoleOutput** gives the newest output whether `Latest` is set or not, on every type.
* **EC2's interactive serial console** is not offered: GetSerialConsoleAccessStatus tells `false`, and
  nothing enables it. `ocs console` is the operator's, read off the host, and no account's setting
  bears on it.
* **Public images** belong to the account `137112412989`, owner alias `amazon`, and have the
  same content in each region under different ids. Tenants' images boot the kernel that their
  origin booted; RegisterImage takes snapshots whose volume was an instance's root.
  While an image's protection from deregistration cools down it is told as `enabled-with-cooldown`.
* **Reserved ranges of subnets**: nothing is given from a `prefix` one, since no prefixes are
  delegated. A subnet has 50 at most, and goes once it has none.
* **Volumes and snapshots** are on one host: a volume attaches to instances of its host, and a
  launch from snapshots goes to theirs. If the operator removes a host that is lost they are in
  `error`, and instances terminated with `Server.InternalError`. Encrypted ones are under keys
  of the host, not of a KMS. ModifyVolume is followed by another at once. A copy of a snapshot is on the host of
  what it is of, whatever their regions, and shares its blocks until one of them goes; one that
  is to be encrypted has all of its blocks written anew, under a key of its own.
  `alias/aws/ebs` is the only key.
* **I/O of a volume** is never disabled, so `autoEnableIO` is kept and told, and EnableVolumeIO
  finds it enabled. ReportInstanceStatus is in the audit log and nowhere else.
* **What this cloud has none of** (VPC endpoints, dedicated hosts, flow logs of EC2's API,
  virtual private gateways, ClassicLink and the like) is listed as an empty list where tools ask
  for it before they go on; it cannot be made.
* **Instance types**: those that DescribeInstanceTypes lists, with EC2's CPUs, memory
  and network bandwidth (baseline, peak and credits, enforced each way). Where EC2 publishes a
  word only (`Low`), the figure is ours, and so are all packet rates.
* **Route tables, network ACLs, internet gateways, peerings, Elastic IPs** are told to hosts
  as they change; peering is between VPCs of one account in one region.
* **IPv6** is within a VPC, on one host and between hosts, and out by an internet gateway or an
  egress-only one: groups, network ACLs, DHCPv6, metadata and the resolver hold for it. A VPC gets
  a /56 of the operator's block (`--ipv6-pool`; without one, of the unique local
  `fd6f:6373::/32`), a subnet a /64 of it. A route with `DestinationIpv6CidrBlock` leads to such a
  gateway or nowhere: its address is an instance's own outside, and who is there reaches it where
  the subnet's table has a route back, not an egress-only one, and rules allow. (The host answers
  neighbour solicitations for it, as it does ARP for Elastic IPs; or the operator's router has a
  route to the host.) Neither a peering nor an interface that forwards carries IPv6. Names have no
  AAAA records, prefixes are not delegated, and no subnet is of IPv6 alone. DHCPv6 gives an
  interface all of its addresses.
* **NAT gateways** are public ones with one Elastic IP. One is carried by a host that answers for
  public addresses; if that is removed another carries it, and its translations begin anew.
* **Instance-connect endpoints** have an IPv4 address and connect from it, never from the client's
  (`PreserveClientIp=true`, `dualstack` and `ipv6` are refused). A VPC has one; the code for a second is ours,
  since EC2 documents none. `DnsName` is where the caller reached the API, at which a tunnel is
  opened (AWS's client wants port 443 of it, so `--listen ADDRESS:443`), to any TCP port, not 22 and
  3389 alone, of any interface of the VPC, not of its peers. The connection is there before the
  WebSocket is: what hinders it is told as an HTTP error. `instanceId` may stand for the
  address and the endpoint. An empty message ends what its sender says. A tunnel that takes nothing for 30 s ends;
  one ends with its endpoint, its host's agent, or control, and is not throttled. If an endpoint's host is removed another carries it.
* **Placement groups** are strict: a host stands for a rack, so one host takes one instance
  of a spread group.
* **CPU credits** are earned and spent as EC2 documents, by the second. What works for the guest
  (its disks and interfaces) spends them, too. A `standard` instance without credits is held to
  its baseline at once, in turns of 20 ms. Surplus credits of `unlimited` ones cost nothing.
* **Key pairs** in PuTTY's format are not made.
* **Error codes of authentication** are EC2's for EC2 (`AuthFailure`, HTTP 401) and STS's
  for STS.

## gRPC

`control/proto/ec2.proto` offers the same operations by the same names. Calls are signed
with Signature Version 4: `POST /ocs.ec2.v1.Ec2/ACTION`, service `ec2`, signed headers
`host` (the HTTP/2 authority) and `x-amz-date`, and as body the request message's bytes
without gRPC's frame header; `authorization` and `x-amz-date` travel as metadata. Refusals
carry EC2's code in the metadata `ocs-error-code`.

## Actions

* Parameters: honoured / refused by name / all of the model's; what is refused is named last.
* Filters: taken / documented, with wildcards; one about something that this cloud does not
  have matches nothing, and any other name is refused.
* Errors: distinct codes that tests provoke (`control/tests/api/bad_requests.txt` and others).
* Effect: a system test (`tests/system`) that makes the call while guests run; of helpers that
  all of them use, the helper; or why no guest could tell.

| action | parameters | filters | errors | effect | refused by name |
|---|---|---|---|---|---|
";
