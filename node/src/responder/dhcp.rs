//! DHCP (RFC 2131, options of RFC 2132): every ENI has one address, for ever.
//!
//! ```text
//!  DISCOVER → OFFER        REQUEST, ours → ACK       INFORM → ACK without a lease
//!                          REQUEST, other → NAK      RELEASE, DECLINE: no answer
//! ```
//! Nothing is remembered: the address belongs to the ENI whether it is leased or not.

use super::record::{Interface, Record};
use dhcproto::v4::{
    self, CLIENT_PORT, DhcpOption, Encodable, Encoder, Flags, HType, Message, MessageType, Opcode,
    OptionCode, borrowed,
};
use std::net::Ipv4Addr;

/// Whom clients know as their server: one address for all, translated per ENI.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Where answers go.
pub const PORT: u16 = CLIENT_PORT;
/// EC2 leases an address for an hour.
const LEASE_S: u32 = 3600;
/// BOOTP clients may drop what is shorter (RFC 1542 §2.1).
const MIN_REPLY_BYTES: usize = 300;

/// What a request asks, as far as it is understood.
struct Request {
    kind: MessageType,
    xid: u32,
    flags: Flags,
    ciaddr: Ipv4Addr,
    chaddr: [u8; 6],
    server: Option<Ipv4Addr>,
    requested: Option<Ipv4Addr>,
}

/// The answer to a datagram of the ENI that `record` describes; `None` where
/// silence is the answer.
#[must_use]
pub fn answer(datagram: &[u8], record: &Record) -> Option<Vec<u8>> {
    let request = Request::parse(datagram)?;
    let interface = record.own_interface()?;
    if ocs_vmm_spec::parse_mac(&interface.mac) != Some(request.chaddr) {
        return None;
    }
    let reply = match request.kind {
        MessageType::Discover => lease(MessageType::Offer, &request, record, interface),
        MessageType::Request => confirm(&request, record, interface)?,
        MessageType::Inform => inform(&request, record, interface),
        _ => return None,
    };
    let mut bytes = Vec::with_capacity(MIN_REPLY_BYTES);
    reply.encode(&mut Encoder::new(&mut bytes)).ok()?;
    if bytes.len() < MIN_REPLY_BYTES {
        bytes.resize(MIN_REPLY_BYTES, 0);
    }
    Some(bytes)
}

/// RFC 2131 §4.3.2: the server identifier tells SELECTING from the other states,
/// `ciaddr` RENEWING and REBINDING from INIT-REBOOT.
fn confirm(request: &Request, record: &Record, interface: &Interface) -> Option<Message> {
    if request.server.is_some_and(|server| server != SERVER) {
        return None;
    }
    let wanted = if request.ciaddr.is_unspecified() {
        request.requested?
    } else {
        request.ciaddr
    };
    Some(if wanted == interface.private_ip {
        lease(MessageType::Ack, request, record, interface)
    } else {
        let mut nak = reply(MessageType::Nak, request);
        nak.set_ciaddr(Ipv4Addr::UNSPECIFIED);
        nak
    })
}

fn lease(kind: MessageType, request: &Request, record: &Record, interface: &Interface) -> Message {
    let mut message = reply(kind, request);
    message.set_yiaddr(interface.private_ip);
    let options = message.opts_mut();
    options.insert(DhcpOption::AddressLeaseTime(LEASE_S));
    options.insert(DhcpOption::Renewal(LEASE_S / 2));
    options.insert(DhcpOption::Rebinding(LEASE_S / 8 * 7));
    configure(options, record, interface);
    message
}

fn inform(request: &Request, record: &Record, interface: &Interface) -> Message {
    let mut message = reply(MessageType::Ack, request);
    configure(message.opts_mut(), record, interface);
    message
}

fn reply(kind: MessageType, request: &Request) -> Message {
    let mut message = Message::new_with_id(
        request.xid,
        request.ciaddr,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::UNSPECIFIED,
        &request.chaddr,
    );
    message
        .set_opcode(Opcode::BootReply)
        .set_flags(request.flags);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    message
        .opts_mut()
        .insert(DhcpOption::ServerIdentifier(SERVER));
    message
}

fn configure(options: &mut v4::DhcpOptions, record: &Record, interface: &Interface) {
    let router = nth(interface.subnet_cidr.network(), 1);
    let resolver = nth(interface.vpc_cidr.network(), 2);
    options.insert(DhcpOption::SubnetMask(interface.subnet_cidr.netmask()));
    options.insert(DhcpOption::BroadcastAddr(interface.subnet_cidr.broadcast()));
    options.insert(DhcpOption::Router(vec![router]));
    let chosen = &interface.options;
    if !chosen.domain_name_servers.is_empty() {
        let servers = chosen.domain_name_servers.clone();
        options.insert(DhcpOption::DomainNameServer(servers));
    } else if !chosen.no_resolver {
        options.insert(DhcpOption::DomainNameServer(vec![resolver]));
    }
    if !chosen.ntp_servers.is_empty() {
        options.insert(DhcpOption::NtpServers(chosen.ntp_servers.clone()));
    }
    if !chosen.netbios_name_servers.is_empty() {
        let servers = chosen.netbios_name_servers.clone();
        options.insert(DhcpOption::NetBiosNameServers(servers));
    }
    if chosen.netbios_node_type != 0 {
        options.insert(DhcpOption::NetBiosNodeType(chosen.netbios_node_type.into()));
    }
    options.insert(DhcpOption::InterfaceMtu(interface.mtu));
    if !interface.domain_name.is_empty() {
        options.insert(DhcpOption::DomainName(interface.domain_name.clone()));
    }
    let host = record.instance.hostname.split('.').next().unwrap_or("");
    if !host.is_empty() {
        options.insert(DhcpOption::Hostname(host.to_owned()));
    }
}

fn nth(base: Ipv4Addr, n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(base.to_bits().wrapping_add(n))
}

impl Request {
    fn parse(datagram: &[u8]) -> Option<Self> {
        let message = borrowed::Message::new(datagram).ok()?;
        // The length is checked before `chaddr` is touched: it is the guest's.
        if message.opcode() != Opcode::BootRequest
            || message.htype() != HType::Eth
            || message.hlen() != 6
        {
            return None;
        }
        let mut request = Self {
            kind: MessageType::Unknown(0),
            xid: message.xid(),
            flags: message.flags(),
            ciaddr: message.ciaddr(),
            chaddr: message.chaddr().try_into().ok()?,
            server: None,
            requested: None,
        };
        for option in message.opts() {
            let data = option.data();
            match option.code() {
                OptionCode::MessageType => request.kind = (*data.first()?).into(),
                OptionCode::ServerIdentifier => request.server = Some(address(data)?),
                OptionCode::RequestedIpAddress => request.requested = Some(address(data)?),
                _ => {}
            }
        }
        Some(request)
    }
}

fn address(data: &[u8]) -> Option<Ipv4Addr> {
    Some(<[u8; 4]>::try_from(data).ok()?.into())
}

#[cfg(test)]
mod tests;
