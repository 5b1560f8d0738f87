//! A record for tests.

use super::record::{Facts, Instance, Interface, Ipv6, Options, RECORD_VERSION, Record};

/// An instance with one ENI, 172.31.16.5 in a default VPC of us-east-1.
pub fn record() -> Record {
    Record {
        version: RECORD_VERSION,
        instance: Instance {
            id: "i-0123456789abcdef0".into(),
            account_id: "123456789012".into(),
            ami_id: "ami-0123456789abcdef0".into(),
            instance_type: "t3.micro".into(),
            region: "us-east-1".into(),
            availability_zone: "us-east-1b".into(),
            availability_zone_id: "use1-az2".into(),
            reservation_id: "r-0123456789abcdef0".into(),
            ami_launch_index: 0,
            hostname: "ip-172-31-16-5.ec2.internal".into(),
            public_ip: None,
            public_hostname: String::new(),
            user_data: b"listen tcp 80\n\xff".to_vec(),
            security_group_names: vec!["default".into(), "web".into()],
            vpc_id: "vpc-1".into(),
            subnet_id: "subnet-1".into(),
            key_name: String::new(),
            public_key: String::new(),
            http_endpoint_enabled: true,
            http_tokens_required: true,
            http_protocol_ipv6: true,
            http_put_response_hop_limit: 1,
            instance_metadata_tags: true,
            tags: [("Name".into(), "a b".into())].into(),
            launch_time_s: 1_794_000_000,
            block_device_mapping: [
                ("ami".into(), "sda1".into()),
                ("root".into(), "/dev/sda1".into()),
            ]
            .into(),
            placement_group_name: String::new(),
            partition_number: 0,
        },
        interfaces: vec![Interface {
            id: "eni-0123456789abcdef0".into(),
            mac: "02:00:00:00:00:2a".into(),
            private_ip: [172, 31, 16, 5].into(),
            secondary: Vec::new(),
            subnet_cidr: "172.31.16.0/20".parse().unwrap(),
            vpc_cidr: "172.31.0.0/16".parse().unwrap(),
            security_groups: vec!["sg-1".into(), "sg-2".into()],
            ipv6: Ipv6::default(),
            mtu: 1500,
            domain_name: "ec2.internal".into(),
            options: Options::default(),
            facts: Facts {
                subnet_id: "subnet-1".into(),
                device_number: 0,
                security_group_names: vec!["default".into(), "web".into()],
                vpc_cidrs: vec!["172.31.0.0/16".into(), "10.9.0.0/16".into()],
                hostname: "ip-172-31-16-5.ec2.internal".into(),
                publics: Vec::new(),
                public_hostname: String::new(),
            },
        }],
        interface: 0,
    }
}
