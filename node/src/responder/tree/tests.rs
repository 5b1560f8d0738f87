use super::*;
use crate::responder::testing::record;

fn leaf(tree: &Tree, path: &str) -> Option<String> {
    match tree.get(path)? {
        Node::Leaf(value) => Some(String::from_utf8(value).unwrap()),
        Node::Listing(_) => None,
    }
}

fn listing(tree: &Tree, path: &str) -> Option<String> {
    match tree.get(path)? {
        Node::Leaf(_) => None,
        Node::Listing(names) => Some(names),
    }
}

#[test]
fn every_listing_leads_to_what_it_names() {
    let mut full = record();
    full.instance.public_ip = Some([203, 0, 113, 9].into());
    full.instance.key_name = "mine".into();
    full.instance.public_key = "ssh-ed25519 AAAA mine".into();
    let tree = Tree::new(&full, None);
    let mut folders = vec![String::new()];
    let mut leaves = 0;
    while let Some(folder) = folders.pop() {
        for name in listing(&tree, &folder).unwrap().lines() {
            let name = name.split('=').next().unwrap();
            let path = format!("{folder}/{}", name.trim_end_matches('/'));
            let path = path.trim_start_matches('/').to_owned();
            match tree
                .get(&path)
                .unwrap_or_else(|| panic!("{path} is listed and absent"))
            {
                Node::Leaf(_) => leaves += 1,
                Node::Listing(_) => folders.push(path),
            }
        }
    }
    assert_eq!(leaves, tree.leaves.len());
}

#[test]
fn an_interface_s_ipv6_addresses_and_blocks_are_told() {
    let none = Tree::new(&record(), None);
    assert_eq!(leaf(&none, "meta-data/ipv6"), None);
    let mut dual = record();
    dual.interfaces[0].ipv6 = crate::responder::record::Ipv6 {
        addresses: ["fd01::5", "fd01::6"].map(|ip| ip.parse().unwrap()).into(),
        subnet: Some("fd01::/64".parse().unwrap()),
        vpc_cidrs: vec!["fd01::/56".into(), "fd02::/56".into()],
    };
    let tree = Tree::new(&dual, None);
    let of = |name: &str| {
        let path = format!("meta-data/network/interfaces/macs/02:00:00:00:00:2a/{name}");
        (leaf(&none, &path), leaf(&tree, &path).unwrap())
    };
    assert_eq!(leaf(&tree, "meta-data/ipv6").unwrap(), "fd01::5");
    for (name, value) in [
        ("ipv6s", "fd01::5\nfd01::6"),
        ("subnet-ipv6-cidr-blocks", "fd01::/64"),
        ("vpc-ipv6-cidr-blocks", "fd01::/56\nfd02::/56"),
    ] {
        assert_eq!(of(name), (None, value.to_owned()));
    }
}

#[test]
fn the_listings_read_as_ec2_s() {
    let tree = Tree::new(&record(), None);
    assert_eq!(
        listing(&tree, "").unwrap(),
        "dynamic/\nmeta-data/\nuser-data"
    );
    let top = listing(&tree, "meta-data").unwrap();
    let expected = "ami-id ami-launch-index ami-manifest-path block-device-mapping/ events/ \
        hostname instance-action instance-id instance-life-cycle instance-type local-hostname \
        local-ipv4 mac metrics/ network/ placement/ profile reservation-id security-groups services/ tags/";
    assert_eq!(
        top.lines().collect::<Vec<_>>(),
        expected.split_whitespace().collect::<Vec<_>>()
    );
    let macs = "meta-data/network/interfaces/macs";
    assert_eq!(listing(&tree, macs).unwrap(), "02:00:00:00:00:2a/");
    assert_eq!(
        leaf(&tree, &format!("{macs}/02:00:00:00:00:2a/device-number")).unwrap(),
        "0"
    );
    assert_eq!(leaf(&tree, "meta-data/tags/instance/Name").unwrap(), "a b");
    assert_eq!(
        leaf(&tree, "meta-data/security-groups").unwrap(),
        "default\nweb"
    );
    assert_eq!(
        leaf(&tree, "meta-data/block-device-mapping/root").unwrap(),
        "/dev/sda1"
    );
    assert_eq!(
        leaf(&tree, "meta-data/placement/availability-zone-id").unwrap(),
        "use1-az2"
    );
}

#[test]
fn a_key_is_listed_by_number_and_name() {
    let mut with_key = record();
    with_key.instance.key_name = "mine".into();
    with_key.instance.public_key = "ssh-ed25519 AAAA mine".into();
    let tree = Tree::new(&with_key, None);
    assert_eq!(listing(&tree, "meta-data/public-keys").unwrap(), "0=mine");
    assert_eq!(
        listing(&tree, "meta-data/public-keys/0").unwrap(),
        "openssh-key"
    );
    let key = leaf(&tree, "meta-data/public-keys/0/openssh-key").unwrap();
    assert_eq!(key, "ssh-ed25519 AAAA mine");
}

#[test]
fn what_an_instance_lacks_is_absent() {
    let mut bare = record();
    bare.instance.user_data.clear();
    bare.instance.instance_metadata_tags = false;
    let tree = Tree::new(&bare, None);
    for path in [
        "user-data",
        "meta-data/public-ipv4",
        "meta-data/public-keys",
        "meta-data/tags",
        "meta-data/iam",
        "dynamic/instance-identity/signature",
        "meta-data/instance-i",
        "meta",
    ] {
        assert_eq!(tree.get(path), None, "{path}");
    }
}

#[test]
fn the_identity_document_is_ec2_s() {
    let document = leaf(
        &Tree::new(&record(), None),
        "dynamic/instance-identity/document",
    )
    .unwrap();
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document["pendingTime"], "2026-11-06T21:20:00Z");
    assert_eq!(document["privateIp"], "172.31.16.5");
    assert_eq!(document["accountId"], "123456789012");
    assert_eq!(document["version"], "2017-09-30");
    assert!(document["kernelId"].is_null());
    assert_eq!(document.as_object().unwrap().len(), 15);
}
