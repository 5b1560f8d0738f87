//! What an operator gives at start.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Command line of `ocs-control`.
#[derive(Debug, Clone, clap::Parser)]
#[command(
    name = "ocs-control",
    version,
    about = "EC2 semantics, store and fronts"
)]
pub struct Config {
    /// Folder of the store.
    #[arg(long)]
    pub state: PathBuf,
    /// Address of the EC2 Query front (HTTP).
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Address of the gRPC front.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub grpc_listen: SocketAddr,
    /// Address that nodes dial (gRPC over mTLS).
    #[arg(long, default_value = "127.0.0.1:0")]
    pub node_listen: SocketAddr,
    /// Certificate authority that nodes' certificates come from (PEM).
    #[arg(long)]
    pub tls_ca: PathBuf,
    /// This server's certificate (PEM).
    #[arg(long)]
    pub tls_cert: PathBuf,
    /// Its key (PEM).
    #[arg(long)]
    pub tls_key: PathBuf,
    /// Region names; the first is the default.
    #[arg(long, value_delimiter = ',', default_value = "us-east-1")]
    pub regions: Vec<String>,
    /// Zones of each region.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub zones: u8,
    /// Where to write the first account's credentials (JSON, mode 0600).
    #[arg(long)]
    pub bootstrap_file: Option<PathBuf>,
    /// Where to write the actual addresses once all listeners serve (JSON).
    #[arg(long)]
    pub ready_file: Option<PathBuf>,
    /// Operator's images (JSON).
    #[arg(long)]
    pub images_manifest: Option<PathBuf>,
    /// Requests a second of an account in a region (profile `private`); 0: no limit.
    #[arg(long, default_value_t = 1_000)]
    pub request_rate: u32,
    /// Socket for the operator's requests.
    #[arg(long)]
    pub admin_socket: Option<PathBuf>,
    /// Blocks of public addresses that Elastic IPs are taken from.
    #[arg(long, value_delimiter = ',')]
    pub public_addresses: Vec<ipnet::Ipv4Net>,
    /// Block of which each VPC that asks for IPv6 gets a /56; none of `fd00:ec2::/32`, where
    /// the metadata service and the resolver are.
    #[arg(long, default_value = "fd6f:6373::/32", value_parser = ipv6_pool)]
    pub ipv6_pool: ipnet::Ipv6Net,
    /// File to hold an exclusive lock on, with the process id in it.
    #[arg(long)]
    pub lock_file: Option<PathBuf>,
}

fn ipv6_pool(text: &str) -> Result<ipnet::Ipv6Net, String> {
    let pool: ipnet::Ipv6Net = text.parse().map_err(|_| "not an IPv6 block".to_owned())?;
    let services = ipnet::Ipv6Net::new_assert(
        "fd00:ec2::"
            .parse()
            .unwrap_or(std::net::Ipv6Addr::UNSPECIFIED),
        32,
    );
    if !(16..=56).contains(&pool.prefix_len()) {
        return Err("its prefix must be from /16 to /56".to_owned());
    }
    if pool.contains(&services) || services.contains(&pool) {
        return Err("it holds addresses of the metadata service".to_owned());
    }
    Ok(pool.trunc())
}

impl Config {
    /// Zone names of a region: its name and a letter.
    pub fn zones_of(&self, region: &str) -> Vec<String> {
        (b'a'..)
            .take(self.zones.into())
            .map(|c| format!("{region}{}", char::from(c)))
            .collect()
    }

    /// Whether a region is configured.
    pub fn has_region(&self, region: &str) -> bool {
        self.regions.iter().any(|name| name == region)
    }

    /// Refuses names that would break keys, ids or host names.
    ///
    /// # Errors
    /// Names the region that is wrong.
    pub fn check(&self) -> anyhow::Result<()> {
        for region in &self.regions {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            let wrong = region.len() < 2 || region.len() > 40 || !region.chars().all(plain);
            anyhow::ensure!(
                !wrong,
                "region name {region:?} is not lower-case letters, digits and dashes"
            );
        }
        Ok(())
    }
}

/// A zone's id in AWS's form: `us-east-1a` → `use1-az1`.
pub fn zone_id(zone: &str) -> String {
    let (region, letter) = zone.split_at(zone.len().saturating_sub(1));
    let number = letter
        .bytes()
        .next()
        .map_or(0, |c| c.wrapping_sub(b'a').wrapping_add(1));
    let parts: Vec<&str> = region.split('-').collect();
    let short = match parts.as_slice() {
        [area, direction, n] if n.parse::<u8>().is_ok() => {
            // north, south, east, west and their pairs are told by their letters.
            let letters: String = ["north", "south", "east", "west", "central"]
                .iter()
                .filter(|word| direction.contains(**word))
                .filter_map(|word| word.chars().next())
                .collect();
            if letters.is_empty() {
                region.to_owned()
            } else {
                format!("{area}{letters}{n}")
            }
        }
        _ => region.to_owned(),
    };
    format!("{short}-az{number}")
}

#[cfg(test)]
mod tests {
    use super::zone_id;

    #[test]
    fn zone_ids_have_awss_form() {
        assert_eq!(zone_id("us-east-1a"), "use1-az1");
        assert_eq!(zone_id("ap-southeast-2c"), "apse2-az3");
        assert_eq!(zone_id("eu-central-1b"), "euc1-az2");
        assert_eq!(zone_id("home1b"), "home1-az2");
    }
}
