//! The tenant's side of the demo: groups, two instances, what they are told to do.
//!
//! ```text
//!  A  m1.small, instance store ── connect, stream ──▶ 7000  B  t3.nano
//!     disk 1: 64 MiB fill, verify, loop  7001 ◀── stream ──    disk 0 (root): loop
//! ```

use super::aws::{Aws, text};
use super::console::Console;
use anyhow::{Context, Result};
use serde_json::Value;
use std::time::{Duration, Instant};

/// The port that B listens on.
pub const B_PORT: &str = "7000";
/// The port that A listens on.
pub const A_PORT: &str = "7001";

/// One of the two instances.
pub struct Guest {
    /// `A` or `B`.
    pub name: &'static str,
    /// Its id.
    pub id: String,
    /// Its private address.
    pub address: String,
    /// Its security group.
    pub group: String,
    /// The user data that it was started with.
    pub user_data: String,
    /// How its stream to the other is named on its console.
    pub stream: String,
    /// How its endless disk check is named there.
    pub disk_loop: &'static str,
    /// Its console.
    pub console: Console,
}

/// Groups and addresses, before anything runs.
pub struct Plan {
    subnet: String,
    a: (String, String),
    b: (String, String),
}

/// Creates the groups and picks two addresses in the default subnet.
pub fn plan(aws: &Aws) -> Result<Plan> {
    let zone = format!("Name=availability-zone,Values={}", aws.value("OCS_ZONE")?);
    let subnets = aws.call(&[
        "ec2",
        "describe-subnets",
        "--filters",
        "Name=default-for-az,Values=true",
        &zone,
    ])?;
    let group = |name: &str| -> Result<String> {
        let answer = aws.call(&[
            "ec2",
            "create-security-group",
            "--group-name",
            name,
            "--description",
            "demo",
        ])?;
        Ok(text(&answer, "/GroupId")?.to_owned())
    };
    let cidr = text(&subnets, "/Subnets/0/CidrBlock")?;
    let network = cidr
        .rsplit_once('.')
        .with_context(|| format!("{cidr} is no CIDR block"))?
        .0;
    Ok(Plan {
        subnet: text(&subnets, "/Subnets/0/SubnetId")?.to_owned(),
        a: (group("demo-a")?, format!("{network}.10")),
        b: (group("demo-b")?, format!("{network}.11")),
    })
}

impl Plan {
    /// B's group.
    pub fn b_group(&self) -> &str {
        &self.b.0
    }

    /// Runs B, which listens.
    pub fn run_b(&self, aws: &Aws) -> Result<Guest> {
        let orders = format!(
            "listen tcp {B_PORT}\nstream {}:{A_PORT}\ndisk 0 loop 4MiB\n",
            self.a.1
        );
        let stream = format!("stream: {}:{A_PORT} ", self.a.1);
        self.run(
            aws,
            "B",
            &self.b,
            "t3.nano",
            orders,
            stream,
            "disk: 0 loop ",
            &[],
        )
    }

    /// Runs A, which connects.
    pub fn run_a(&self, aws: &Aws) -> Result<Guest> {
        let b = &self.b.1;
        let orders = format!(
            "listen tcp {A_PORT}\nconnect {b}:{B_PORT} every 100ms\nstream {b}:{B_PORT}\n\
             disk 1 fill 64MiB 7\ndisk 1 verify 64MiB 7\ndisk 1 loop 4MiB\n"
        );
        let stream = format!("stream: {b}:{B_PORT} ");
        let disk = [
            "--block-device-mappings",
            "DeviceName=/dev/sdb,VirtualName=ephemeral0",
        ];
        self.run(
            aws,
            "A",
            &self.a,
            "m1.small",
            orders,
            stream,
            "disk: 1 loop ",
            &disk,
        )
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one call of RunInstances, spelled out"
    )]
    fn run(
        &self,
        aws: &Aws,
        name: &'static str,
        (group, address): &(String, String),
        instance_type: &str,
        user_data: String,
        stream: String,
        disk_loop: &'static str,
        more: &[&str],
    ) -> Result<Guest> {
        let image = aws.value("OCS_PROBE_AMI")?;
        let mut args = vec![
            "ec2",
            "run-instances",
            "--image-id",
            image,
            "--instance-type",
            instance_type,
            "--subnet-id",
            &self.subnet,
            "--private-ip-address",
            address,
            "--security-group-ids",
            group,
            "--user-data",
            &user_data,
            "--metadata-options",
            "HttpTokens=required",
            "--client-token",
            address,
        ];
        args.extend(more);
        let answer = aws.call(&args)?;
        let id = text(&answer, "/Instances/0/InstanceId")?.to_owned();
        Ok(Guest {
            name,
            console: Console::of(&id),
            address: text(&answer, "/Instances/0/PrivateIpAddress")?.to_owned(),
            group: group.clone(),
            id,
            user_data,
            stream,
            disk_loop,
        })
    }
}

/// Polls DescribeInstances until all are in `state`. Yields the answer.
pub fn wait_state(aws: &Aws, ids: &[&str], state: &str, limit: Duration) -> Result<Value> {
    let until = Instant::now() + limit;
    let mut args = vec!["ec2", "describe-instances", "--instance-ids"];
    args.extend(ids);
    loop {
        let answer = aws.call(&args);
        if let Ok(answer) = &answer {
            let states = states(answer);
            if states.len() == ids.len() && states.iter().all(|(_, held)| held == state) {
                return Ok(answer.clone());
            }
        }
        if Instant::now() > until {
            let seen = states(&answer?);
            anyhow::bail!("not all {state} within {limit:?}: {seen:?}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// (id, state name) of each instance in an answer of DescribeInstances.
pub fn states(answer: &Value) -> Vec<(String, String)> {
    let reservations = answer["Reservations"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    reservations
        .iter()
        .flat_map(|reservation| {
            reservation["Instances"]
                .as_array()
                .map_or(&[][..], Vec::as_slice)
        })
        .map(|instance| {
            let word = |value: &Value| value.as_str().unwrap_or("?").to_owned();
            (
                word(&instance["InstanceId"]),
                word(&instance["State"]["Name"]),
            )
        })
        .collect()
}

/// `authorize-` or `revoke-security-group-ingress` of one TCP port, from a group.
pub fn ingress(aws: &Aws, verb: &str, to: &str, port: &str, from: &str) -> Result<Value> {
    let action = format!("{verb}-security-group-ingress");
    aws.call(&[
        "ec2",
        &action,
        "--group-id",
        to,
        "--protocol",
        "tcp",
        "--port",
        port,
        "--source-group",
        from,
    ])
}
