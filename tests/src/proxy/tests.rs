//! Each fault seen from both peers over real sockets.
use super::*;

const SOON: Duration = Duration::from_secs(5);

/// A server that sends back what it gets.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await.ok();
                write.shutdown().await.ok();
            });
        }
    });
    addr
}

async fn dial(proxy: &FaultProxy) -> TcpStream {
    timeout(SOON, TcpStream::connect(proxy.addr())).await.unwrap().unwrap()
}

async fn round_trip(stream: &mut TcpStream, data: &[u8]) {
    stream.write_all(data).await.unwrap();
    let mut back = vec![0; data.len()];
    timeout(SOON, stream.read_exact(&mut back)).await.expect("an echo in time").unwrap();
    assert_eq!(back, data);
}

async fn read_to_end(stream: &mut TcpStream) -> (Vec<u8>, io::Result<usize>) {
    let mut all = Vec::new();
    let end = timeout(SOON, stream.read_to_end(&mut all)).await.expect("an end in time");
    (all, end)
}

#[tokio::test]
async fn without_faults_every_byte_and_the_end_of_file_pass() {
    let proxy = FaultProxy::start(echo().await).await.unwrap();
    let mut stream = dial(&proxy).await;
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let (mut read, mut write) = stream.split();
    let mut back = Vec::new();
    let ((), received) = tokio::join!(
        async {
            write.write_all(&data).await.unwrap();
            write.shutdown().await.unwrap();
        },
        read.read_to_end(&mut back),
    );
    received.unwrap();
    assert!(back == data, "{} bytes came back of {}", back.len(), data.len());
    proxy.wait_live(0, SOON).await.unwrap();
    let seen = proxy.counters();
    assert_eq!((seen.accepted, seen.cut, seen.up, seen.down), (1, 0, 3_000_000, 3_000_000));
}

#[tokio::test]
async fn delay_holds_each_way_and_can_be_taken_back() {
    let proxy = FaultProxy::start(echo().await).await.unwrap();
    let mut stream = dial(&proxy).await;
    proxy.set(Faults::delay(Duration::from_millis(80))).await.unwrap();
    let start = Instant::now();
    round_trip(&mut stream, b"slow").await;
    assert!(start.elapsed() >= Duration::from_millis(160), "{:?}", start.elapsed());
    proxy.heal().await.unwrap();
    round_trip(&mut stream, b"quick").await;
}

#[tokio::test]
async fn trickle_limits_the_rate() {
    let proxy = FaultProxy::start(echo().await).await.unwrap();
    let mut stream = dial(&proxy).await;
    proxy.set(Faults::trickle(2000)).await.unwrap();
    let start = Instant::now();
    round_trip(&mut stream, &[7; 600]).await;
    assert!(start.elapsed() >= Duration::from_millis(250), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_black_hole_keeps_the_sockets_and_gives_back_what_it_held() {
    let proxy = FaultProxy::start(echo().await).await.unwrap();
    let mut stream = dial(&proxy).await;
    round_trip(&mut stream, b"before").await;
    proxy.set(Faults::black_hole()).await.unwrap();
    stream.write_all(b"lost?").await.unwrap();
    let mut byte = [0];
    assert!(timeout(Duration::from_millis(150), stream.read(&mut byte)).await.is_err(), "nothing comes");
    let mut late = dial(&proxy).await;
    late.write_all(b"x").await.unwrap();
    assert!(timeout(Duration::from_millis(100), late.read(&mut byte)).await.is_err(), "nothing comes");
    assert_eq!(proxy.counters().live, 2);
    assert_eq!(proxy.counters().up, 6);
    proxy.heal().await.unwrap();
    let mut back = [0; 5];
    timeout(SOON, stream.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!(&back, b"lost?");
}

#[tokio::test]
async fn cut_after_lets_exactly_so_many_bytes_through() {
    let proxy = FaultProxy::start(echo().await).await.unwrap();
    for bytes in [1, 10, 40_000] {
        proxy.cut_after(Direction::Down, bytes, Cut::Fin);
        let mut stream = dial(&proxy).await;
        stream.write_all(&vec![3; 50_000]).await.unwrap();
        let (got, end) = read_to_end(&mut stream).await;
        assert_eq!(got.len() as u64, bytes);
        end.unwrap();
    }
    proxy.wait_live(0, SOON).await.unwrap();
    assert_eq!(proxy.counters().cut, 3);
    round_trip(&mut dial(&proxy).await, b"the fuse works once").await;
}

#[tokio::test]
async fn fin_and_reset_are_told_apart_by_the_peer() {
    let proxy = FaultProxy::start(echo().await).await.unwrap();
    for how in [Cut::Fin, Cut::Reset] {
        let (mut one, mut two) = (dial(&proxy).await, dial(&proxy).await);
        round_trip(&mut one, b"1").await;
        round_trip(&mut two, b"2").await;
        assert_eq!(proxy.cut(how), 2);
        for stream in [&mut one, &mut two] {
            match (how, read_to_end(stream).await.1) {
                (Cut::Fin, Ok(0)) => {}
                (Cut::Reset, Err(e)) if e.kind() == io::ErrorKind::ConnectionReset => {}
                (_, other) => panic!("{how:?} gave {other:?}"),
            }
        }
        proxy.wait_live(0, SOON).await.unwrap();
    }
}

#[tokio::test]
async fn refusing_leaves_the_living_alone_and_ends_at_once() {
    let proxy = FaultProxy::start(echo().await).await.unwrap();
    let mut old = dial(&proxy).await;
    round_trip(&mut old, b"old").await;
    proxy.set(Faults::refuse()).await.unwrap();
    let error = TcpStream::connect(proxy.addr()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    round_trip(&mut old, b"still there").await;
    proxy.heal().await.unwrap();
    round_trip(&mut dial(&proxy).await, b"new").await;
}

#[tokio::test]
async fn a_dead_target_resets_and_a_new_target_serves() {
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let proxy = FaultProxy::start(dead).await.unwrap();
    let (_, end) = read_to_end(&mut dial(&proxy).await).await;
    assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    proxy.retarget(echo().await);
    round_trip(&mut dial(&proxy).await, b"moved").await;
}

#[tokio::test]
async fn dropping_the_proxy_ends_its_connections() {
    let proxy = FaultProxy::start(echo().await).await.unwrap();
    let addr = proxy.addr();
    let mut stream = dial(&proxy).await;
    round_trip(&mut stream, b"alive").await;
    drop(proxy);
    let (rest, _) = read_to_end(&mut stream).await;
    assert!(rest.is_empty());
    assert!(TcpStream::connect(addr).await.is_err());
}
