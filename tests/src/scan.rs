//! Which ports of a host are open, seen from outside: every TCP port is knocked at, and UDP where somebody answers.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recv, sendto, socket_with, sockopt,
};

use crate::lab::Peer;

/// How often a port is knocked at that does not answer.
const KNOCKS: usize = 3;
/// How long the last answers of a round may take. The lab is one machine.
const PATIENCE: Duration = Duration::from_millis(600);
/// Knocks between two looks for answers: fewer than a queue of the kernel's holds.
const BURST: usize = 200;
/// The port that we knock from: below those that the kernel gives out, so that nothing else is answered there.
const FROM: u16 = 20_022;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// What came back from all TCP ports of one address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ports {
    /// Somebody listens there and is let in to.
    pub open: BTreeSet<u16>,
    /// The host itself said that nobody listens there. From all others nothing came back.
    pub refused: BTreeSet<u16>,
}

/// Knocks at every TCP port of a host's address, as this peer.
pub fn every_port(peer: &Peer, to: IpAddr) -> Result<Ports> {
    let from = if to.is_ipv4() { IpAddr::from(peer.v4) } else { peer.v6.into() };
    peer.within(|| Knocker::new(from, to)?.every_port()).context("knock at every port")?
}

/// Sends TCP segments by hand: no port that does not answer keeps a socket busy.
struct Knocker {
    from: IpAddr,
    to: IpAddr,
    socket: OwnedFd,
}

impl Knocker {
    fn new(from: IpAddr, to: IpAddr) -> Result<Self> {
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            socket_with(family, SocketType::RAW, flags, Some(ipproto::TCP)).context("make a raw socket")?;
        sockopt::set_socket_recv_buffer_size_force(&socket, 8 << 20).context("make room for answers")?;
        Ok(Self { from, to, socket })
    }

    fn every_port(&self) -> Result<Ports> {
        let mut found = Ports::default();
        for _ in 0..KNOCKS {
            let answered = |port: &u16| found.open.contains(port) || found.refused.contains(port);
            let silent: Vec<u16> = (1..=u16::MAX).filter(|port| !answered(port)).collect();
            for burst in silent.chunks(BURST) {
                for port in burst {
                    self.knock(*port)?;
                }
                self.take(&mut found)?;
            }
            let until = Instant::now() + PATIENCE;
            while self.wait(until)? {
                self.take(&mut found)?;
            }
        }
        Ok(found)
    }

    fn knock(&self, port: u16) -> Result<()> {
        let segment = syn(self.from, self.to, port);
        // A raw socket takes no port; IPv6 refuses one.
        let to = SocketAddr::new(self.to, 0);
        loop {
            match sendto(&self.socket, &segment, SendFlags::empty(), &to) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::NOBUFS) => {
                    let room = PollFd::new(&self.socket, PollFlags::OUT);
                    poll(&mut [room], Some(&Timespec { tv_sec: 1, tv_nsec: 0 })).context("wait for room")?;
                }
                Err(error) => return Err(error).with_context(|| format!("knock at {} port {port}", self.to)),
            }
        }
    }

    /// Whether something came before that time.
    fn wait(&self, until: Instant) -> Result<bool> {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).context("a deadline is too far away")?;
        let come = PollFd::new(&self.socket, PollFlags::IN);
        Ok(!left.is_zero() && poll(&mut [come], Some(&timeout)).context("wait for answers")? > 0)
    }

    /// All answers that are there.
    fn take(&self, found: &mut Ports) -> Result<()> {
        let mut buffer = [0; 512];
        loop {
            let length = match recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((_, length)) => length.min(buffer.len()),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error).context("read an answer"),
            };
            match answer(&buffer[..length], self.to) {
                Some((port, flags)) if flags & RST != 0 => drop(found.refused.insert(port)),
                Some((port, flags)) if flags & (SYN | ACK) == SYN | ACK => drop(found.open.insert(port)),
                _ => {}
            }
        }
    }
}

/// RFC 9293: a segment that asks for a connection to a port, with its checksum over the pseudo-header.
fn syn(from: IpAddr, to: IpAddr, port: u16) -> [u8; 20] {
    let mut segment = [0; 20];
    segment[..2].copy_from_slice(&FROM.to_be_bytes());
    segment[2..4].copy_from_slice(&port.to_be_bytes());
    segment[4..8].copy_from_slice(&[0x50, 0x53, port.to_be_bytes()[0], port.to_be_bytes()[1]]);
    // Five words long.
    segment[12] = 5 << 4;
    segment[13] = SYN;
    segment[14..16].copy_from_slice(&1024_u16.to_be_bytes());
    let octets = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    // Its other fields: protocol and length, with zeroes that count for nothing.
    let mut summed = [octets(from), octets(to), vec![0, 6, 0, 20]].concat();
    summed.extend(segment);
    let sum: u32 =
        summed.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    let check = !u16::try_from(folded).unwrap_or(u16::MAX);
    segment[16..18].copy_from_slice(&check.to_be_bytes());
    segment
}

/// The port that a packet answers for, and the flags of the answer. IPv4 comes with its header, IPv6 without.
fn answer(packet: &[u8], of: IpAddr) -> Option<(u16, u8)> {
    let segment = match of {
        IpAddr::V4(v4) => {
            let length = usize::from(packet.first()? & 0x0f) * 4;
            if packet.get(12..16)? != v4.octets() {
                return None;
            }
            packet.get(length..)?
        }
        IpAddr::V6(_) => packet,
    };
    let number = |at: usize| Some(u16::from_be_bytes([*segment.get(at)?, *segment.get(at + 1)?]));
    (number(2)? == FROM).then_some((number(0)?, *segment.get(13)?))
}

/// Whether a datagram to this UDP port is answered, as this peer.
pub fn udp_answers(peer: &Peer, to: SocketAddr) -> Result<bool> {
    peer.within(|| -> Result<bool> {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).context("make a UDP socket")?;
        socket.connect(to).context("set a UDP socket's peer")?;
        socket.set_read_timeout(Some(PATIENCE)).context("set a deadline")?;
        for _ in 0..KNOCKS {
            // One that is refused says so at the next call, and that is no answer.
            if socket.send(b"anybody there?").is_ok() && socket.recv(&mut [0; 64]).is_ok() {
                return Ok(true);
            }
        }
        Ok(false)
    })?
}

/// That a host's TCP ports which are open to this peer are these, over IPv4 and IPv6, and that no other one says
/// anything at all.
pub fn only_these(peer: &Peer, addresses: [IpAddr; 2], ports: &[u16]) -> Result<()> {
    for (address, seen) in both(peer, addresses)? {
        let want = Ports { open: ports.iter().copied().collect(), refused: BTreeSet::new() };
        ensure!(
            seen == want,
            "open at {address}: {:?}, where {ports:?} should be; {} ports say that nobody listens",
            seen.open,
            seen.refused.len()
        );
    }
    Ok(())
}

/// Every port of both addresses, at once.
pub fn both(peer: &Peer, addresses: [IpAddr; 2]) -> Result<Vec<(IpAddr, Ports)>> {
    std::thread::scope(|scope| {
        let scans = addresses.map(|address| (address, scope.spawn(move || every_port(peer, address))));
        let done = scans.map(|(address, scan)| {
            let seen = scan.join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked));
            seen.map(|seen| (address, seen))
        });
        done.into_iter().collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_sums_to_all_ones_with_its_pseudo_header() {
        for (from, to) in [("10.213.7.240", "10.213.7.11"), ("fdb0::1:f0", "fdb0::1:b")] {
            let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
            for port in [1, 22, 443, 65_535] {
                let segment = syn(from, to, port);
                let octets = |address: IpAddr| match address {
                    IpAddr::V4(v4) => v4.octets().to_vec(),
                    IpAddr::V6(v6) => v6.octets().to_vec(),
                };
                let all = [octets(from), octets(to), vec![0, 6, 0, 20], segment.to_vec()].concat();
                let mut sum: u32 =
                    all.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
                while sum > 0xffff {
                    sum = (sum & 0xffff) + (sum >> 16);
                }
                assert_eq!(sum, 0xffff, "{port}");
            }
        }
    }

    #[test]
    fn answers_are_told_by_address_port_and_flags() {
        let of: IpAddr = "192.0.2.1".parse().unwrap();
        let mut segment = syn(of, "192.0.2.2".parse().unwrap(), FROM);
        segment[..2].copy_from_slice(&443_u16.to_be_bytes());
        segment[13] = SYN | ACK;
        let mut packet = vec![0x46; 24];
        packet[12..16].copy_from_slice(&[192, 0, 2, 1]);
        packet.extend(segment);
        assert_eq!(answer(&packet, of), Some((443, SYN | ACK)));
        assert_eq!(answer(&segment, "2001:db8::1".parse().unwrap()), Some((443, SYN | ACK)));
        assert_eq!(answer(&packet, "192.0.2.9".parse().unwrap()), None, "from somebody else");
        packet[24 + 3] ^= 1;
        assert_eq!(answer(&packet, of), None, "to another port");
        assert_eq!(answer(&packet[..30], of), None, "cut off");
    }
}
