//! Counters of all ports, for a reader and for Prometheus.

use ocs_dataplane::fabric::{Fabric, FabricError};
use ocs_dataplane::shared::layout::{Direction, Reason};
use std::fmt::Write;

fn name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

/// A line a port, direction and reason.
pub fn top(fabric: &Fabric) -> Result<String, FabricError> {
    let mut text = format!(
        "{:<26} {:<8} {:<24} {:>16}\n",
        "ENI", "WAY", "REASON", "PACKETS"
    );
    each(fabric, |eni, direction, reason, packets| {
        let (way, label) = (name(direction), reason.label());
        let _ = writeln!(text, "{eni:<26} {way:<8} {label:<24} {packets:>16}");
    })?;
    Ok(text)
}

/// Prometheus' text format.
pub fn metrics(fabric: &Fabric) -> Result<String, FabricError> {
    let mut text = "# HELP ocs_eni_packets_total What became of an ENI's packets.\n\
                    # TYPE ocs_eni_packets_total counter\n"
        .to_owned();
    each(fabric, |eni, direction, reason, packets| {
        let (way, label) = (name(direction), reason.label());
        let _ = writeln!(
            text,
            "ocs_eni_packets_total{{eni=\"{eni}\",direction=\"{way}\",reason=\"{label}\"}} {packets}"
        );
    })?;
    text.push_str(
        "# HELP ocs_eni_network_credit_bytes Network credits that an ENI has left.\n\
         # TYPE ocs_eni_network_credit_bytes gauge\n",
    );
    for port in fabric.ports() {
        for direction in [Direction::Ingress, Direction::Egress] {
            // A port may go between two questions.
            if let Ok(Some(bytes)) = fabric.credit_bytes(&port, direction) {
                let (eni, way) = (&port.0, name(direction));
                let _ = writeln!(
                    text,
                    "ocs_eni_network_credit_bytes{{eni=\"{eni}\",direction=\"{way}\"}} {bytes}"
                );
            }
        }
    }
    Ok(text)
}

fn each(
    fabric: &Fabric,
    mut tell: impl FnMut(&str, Direction, Reason, u64),
) -> Result<(), FabricError> {
    for port in fabric.ports() {
        let counters = match fabric.counters(&port) {
            Ok(counters) => counters,
            Err(FabricError::UnknownPort { .. }) => continue,
            Err(error) => return Err(error),
        };
        for ((direction, reason), packets) in counters.packets {
            tell(&port.0, direction, reason, packets);
        }
    }
    for ((direction, reason), packets) in fabric.responder_counters()?.packets {
        tell("responder", direction, reason, packets);
    }
    Ok(())
}
