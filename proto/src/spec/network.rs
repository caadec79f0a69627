//! Addresses and networks as specs have them: `192.0.2.1`, `2001:db8::/32`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address with the length of its network's prefix; a single one has all bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    /// The first address.
    pub address: IpAddr,
    /// Bits.
    pub prefix: u8,
}

impl Network {
    /// Reads one. The error is for people, and names the network that was probably meant.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: want an address or a network, like 192.0.2.1 or 2001:db8::/32");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits,
            Some(digits) if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) => {
                return Err(wrong());
            }
            Some(digits) => digits.parse().ok().filter(|prefix| *prefix <= bits).ok_or_else(wrong)?,
        };
        let first = Self { address: masked(address, prefix), prefix };
        if first.address != address {
            return Err(format!("{text:?}: has bits beyond its prefix: want {first}"));
        }
        Ok(first)
    }

    /// True for one of version 4.
    #[must_use]
    pub fn is_v4(&self) -> bool {
        self.address.is_ipv4()
    }
}

impl fmt::Display for Network {
    /// Always with its prefix, as iptables writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// The address with all bits beyond the prefix unset.
fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_by_table() {
        for (text, want) in [
            ("192.0.2.1", Ok("192.0.2.1/32")),
            ("192.0.2.0/24", Ok("192.0.2.0/24")),
            ("0.0.0.0/0", Ok("0.0.0.0/0")),
            ("2001:db8::1", Ok("2001:db8::1/128")),
            ("2001:DB8::/32", Ok("2001:db8::/32")),
            ("::/0", Ok("::/0")),
            ("192.0.2.1/24", Err("want 192.0.2.0/24")),
            ("2001:db8::1/64", Err("want 2001:db8::/64")),
            ("192.0.2.0/33", Err("want an address or a network")),
            ("192.0.2.0/", Err("want an address or a network")),
            ("192.0.2.0/+8", Err("want an address or a network")),
            ("192.0.2", Err("want an address or a network")),
            ("example.org", Err("want an address or a network")),
            ("fe80::1%eth0", Err("want an address or a network")),
            ("", Err("want an address or a network")),
        ] {
            match (Network::parse(text), want) {
                (Ok(got), Ok(want)) => assert_eq!(got.to_string(), want),
                (Err(why), Err(want)) => assert!(why.contains(want), "{why}"),
                (got, want) => panic!("{text}: {got:?}, wanted {want:?}"),
            }
        }
    }
}
