//! `cargo xtask demo --debian`: Debian and its cloud-init, unmodified, make themselves what the
//! tenant asked for: found by what firmware says, told by metadata.

use super::aws::{Aws, text};
use super::lab::{installation, key_value, line, stock_image, wait_end};
use super::story::wait_state;
use super::table::Table;
use crate::lab::{self, Work};
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::time::Duration;

/// systemd, Python and all under two levels of emulation.
const GUEST_LIMIT: Duration = Duration::from_secs(900);
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMS3ZKJMl8SbuRvAnhFjsUxLM4tFwsoP9IBvjKc9UUpT";

/// A cloud-config and a script, as cloud-init takes both at once.
const USER_DATA: &str = r#"Content-Type: multipart/mixed; boundary="PART"
MIME-Version: 1.0

--PART
Content-Type: text/cloud-config; charset="us-ascii"

#cloud-config
write_files:
- path: /etc/told
  content: by cloud-config

--PART
Content-Type: text/x-shellscript; charset="us-ascii"

#!/bin/sh
echo "stock: kernel $(uname -r)"
echo "stock: packages $(dpkg --verify cloud-init openssh-server udev | wc -l) changed"
echo "stock: source $(grep -o 'Found single datasource: .*' /run/cloud-init/ds-identify.log), cloud $(cloud-id)"
echo "stock: host $(hostname) $(cat /etc/hostname)"
echo "stock: key $(cat /home/debian/.ssh/authorized_keys)"
echo "stock: told $(cat /etc/told)"
echo "stock: root $(findmnt -no SOURCE,FSTYPE /) kib=$(df --output=size / | tail -1 | tr -d ' ')"
echo "stock: sshd $(systemctl is-active ssh)"
echo "stock: end"
--PART--
"#;

/// Boots it and checks what it made of itself, by its console.
pub fn prove(binaries: &Path) -> Result<Table> {
    let image = lab::debian()?;
    let work = Work::new()?;
    let import = [
        "--root-image".to_owned(),
        image.display().to_string(),
        "--root-size".to_owned(),
        "3".to_owned(),
    ];
    installation(binaries, &work, &import, claims)
}

fn claims(table: &mut Table, aws: Result<Aws>) {
    let (mut console, mut address) = (String::new(), String::new());
    table.check(
        "an unmodified Debian boots the kernel of its own disk and runs its user data",
        || {
            let aws = aws?;
            let id;
            (id, address) = run(&aws)?;
            console = wait_end(&aws, &id, GUEST_LIMIT)?;
            let changed = line(&console, "stock: packages ")?;
            ensure!(changed.ends_with(" 0 changed"), "{changed}");
            Ok(format!("{}\n{changed}", line(&console, "stock: kernel ")?))
        },
    );
    let mut says = |claim: &str, start: &str, right: &dyn Fn(&str) -> bool| {
        table.check(claim, || {
            let line = line(&console, start)?;
            ensure!(right(line), "{line}");
            Ok(line.to_owned())
        });
    };
    says(
        "cloud-init finds the Ec2 data source by what firmware says",
        "stock: source ",
        &|line| line.contains("Ec2") && line.ends_with("cloud aws"),
    );
    let name = format!("ip-{}", address.replace('.', "-"));
    says(
        "its host name is the one of its address",
        "stock: host ",
        &|line| line == format!("stock: host {name} {name}"),
    );
    says("its user has the tenant's key", "stock: key ", &|line| {
        line.starts_with(&format!("stock: key {KEY}"))
    });
    says("its cloud-config was applied", "stock: told ", &|line| {
        line == "stock: told by cloud-config"
    });
    says(
        "its root grew to the size of its volume",
        "stock: root ",
        &|line| {
            line.contains(" ext4 ") && key_value(line, "kib").is_some_and(|kib| kib > 2_600_000)
        },
    );
    says("its SSH server runs", "stock: sshd ", &|line| {
        line == "stock: sshd active"
    });
}

/// Runs it; its id and address.
fn run(aws: &Aws) -> Result<(String, String)> {
    let public = tempfile::NamedTempFile::new()?;
    std::fs::write(public.path(), format!("{KEY} tenant\n"))?;
    aws.call(&[
        "ec2",
        "import-key-pair",
        "--key-name",
        "tenant",
        "--public-key-material",
        &format!("fileb://{}", public.path().display()),
    ])?;
    let answer = aws.call(&[
        "ec2",
        "run-instances",
        "--image-id",
        &stock_image(aws)?,
        "--instance-type",
        "t2.micro",
        "--key-name",
        "tenant",
        "--user-data",
        USER_DATA,
    ])?;
    let id = text(&answer, "/Instances/0/InstanceId")?.to_owned();
    let address = text(&answer, "/Instances/0/PrivateIpAddress").context("it has no address")?;
    wait_state(aws, &[&id], "running", GUEST_LIMIT)?;
    Ok((id, address.to_owned()))
}
