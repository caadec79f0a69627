//! HTTP CONNECT: the client's half, with a bounded answer and an error for every way it goes wrong (T50).

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::route::{Proxy, Target};

/// The longest head of an answer that is read, bytes.
const MAX_HEAD: usize = 8 * 1024;

/// Why the proxy leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// 407.
    #[error("the proxy wants other credentials than it was given (407)")]
    Authentication,
    /// 403 and the like.
    #[error("the proxy does not allow it ({0})")]
    Forbidden(String),
    /// 502, 503, 504: it could not reach the controller.
    #[error("the proxy cannot reach the controller ({0})")]
    Unreachable(String),
    /// Any other status.
    #[error("the proxy answered {0}")]
    Status(String),
    /// Not HTTP, or too much of it.
    #[error("what answers is not an HTTP proxy ({0})")]
    Garbage(&'static str),
    /// The connection to the proxy.
    #[error("the connection to the proxy broke")]
    Io(#[source] std::io::Error),
}

/// Asks the proxy for a connection to the target. On success the stream is the target's, from its first byte.
pub(crate) async fn connect<S>(stream: &mut S, proxy: &Proxy, target: &Target) -> Result<(), ProxyError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let authorization = match &proxy.authorization {
        Some(value) => zeroize::Zeroizing::new(format!("Proxy-Authorization: {}\r\n", **value)),
        None => Default::default(),
    };
    let request = zeroize::Zeroizing::new(format!(
        "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: postern-agent/{}\r\n{}\r\n",
        env!("CARGO_PKG_VERSION"),
        *authorization
    ));
    stream.write_all(request.as_bytes()).await.map_err(ProxyError::Io)?;
    stream.flush().await.map_err(ProxyError::Io)?;
    let head = read_head(stream).await?;
    judge(&head)
}

/// Reads up to the empty line and not a byte beyond it: what follows belongs to TLS.
async fn read_head<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Vec<u8>, ProxyError> {
    let mut head = Vec::with_capacity(256);
    loop {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(ProxyError::Garbage("it closed the connection in the middle of its answer"));
            }
            Err(error) => return Err(ProxyError::Io(error)),
        }
        if head.ends_with(b"\r\n\r\n") || head.ends_with(b"\n\n") {
            return Ok(head);
        }
        if head.len() <= 5 && !b"HTTP/"[..].starts_with(&head) {
            return Err(ProxyError::Garbage("its answer does not begin with HTTP"));
        }
        if head.len() >= MAX_HEAD {
            return Err(ProxyError::Garbage("the head of its answer has no end"));
        }
    }
}

fn judge(head: &[u8]) -> Result<(), ProxyError> {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.trim_end().splitn(3, ' ');
    let version = words.next().unwrap_or_default();
    let code = words.next().filter(|code| code.len() == 3).and_then(|code| code.parse::<u16>().ok());
    let (true, Some(code)) = (version.starts_with("HTTP/1."), code) else {
        return Err(ProxyError::Garbage("its answer has no status"));
    };
    // Shown to people: nothing but printable text, and not much of it.
    let phrase: String =
        words.next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(80).collect();
    let status = format!("{code} {phrase}").trim_end().to_owned();
    match code {
        200..=299 => Ok(()),
        407 => Err(ProxyError::Authentication),
        401 | 403 | 405 => Err(ProxyError::Forbidden(status)),
        502..=504 => Err(ProxyError::Unreachable(status)),
        _ => Err(ProxyError::Status(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answer(text: &[u8]) -> (Result<(), ProxyError>, Vec<u8>, Vec<u8>) {
        let (mut near, mut far) = tokio::io::duplex(64 * 1024);
        let proxy: Proxy = "http://u:p@proxy:3128".parse().unwrap();
        far.write_all(text).await.unwrap();
        far.shutdown().await.unwrap();
        let result = connect(&mut near, &proxy, &"[2001:db8::1]:7300".parse().unwrap()).await;
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.unwrap();
        drop(near);
        let mut request = Vec::new();
        far.read_to_end(&mut request).await.unwrap();
        (result, rest, request)
    }

    #[tokio::test]
    async fn trap_50_a_tunnel_begins_right_after_the_head() {
        let (result, rest, request) =
            answer(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n\x16\x03").await;
        assert!(result.is_ok());
        assert_eq!(rest, b"\x16\x03");
        let request = String::from_utf8(request).unwrap();
        assert!(request.starts_with("CONNECT [2001:db8::1]:7300 HTTP/1.1\r\nHost: [2001:db8::1]:7300\r\n"));
        assert!(request.contains("\r\nProxy-Authorization: Basic dTpw\r\n") && request.ends_with("\r\n\r\n"));
    }

    #[tokio::test]
    async fn trap_50_every_refusal_has_its_own_words() {
        for (text, want) in [
            (&b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"[..], "407"),
            (b"HTTP/1.0 403 \x1b[31mno\r\n\r\n", "does not allow it (403 [31mno)"),
            (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "cannot reach the controller (502 Bad Gateway)"),
            (b"HTTP/1.1 302 Found\r\n\r\n", "answered 302 Found"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "not an HTTP proxy"),
            (b"HTTP/2 200\r\n\r\n", "no status"),
            (b"HTTP/1.1 2OO ok\r\n\r\n", "no status"),
            (b"HTTP/1.1 200 ok\r\n", "in the middle"),
            (b"", "in the middle"),
        ] {
            let (result, ..) = answer(text).await;
            let error = result.unwrap_err().to_string();
            assert!(error.contains(want), "{error} instead of {want}");
        }
        let (result, ..) = answer(&[b"HTTP/1.1 200 ok\r\n".as_slice(), &[b'x'; 20_000]].concat()).await;
        assert!(matches!(result, Err(ProxyError::Garbage(_))));
    }
}
