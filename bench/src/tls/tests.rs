use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use clap::Parser;

use super::certificates::Certificates;
use super::*;

#[derive(Parser)]
struct Wrapper {
    #[command(flatten)]
    tls: TlsArgs,
}

/// Certificates of a server that is called `echo.bench`.
fn certificates() -> (tempfile::TempDir, Certificates) {
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(dir.path(), "echo.bench").unwrap();
    (dir, certificates)
}

fn server(certificates: &Certificates) -> Server {
    Server::new(&certificates.dir().join("server.pem"), &certificates.dir().join("server.key")).unwrap()
}

/// Both ends of a loopback connection, reads bounded in time.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    }
    (client, server)
}

/// A handshake in which the server echoes 4 bytes; gives the client's end, or why it failed.
fn shake(server: &Server, client: &Client) -> io::Result<Socket> {
    let (near, far) = pair();
    let connection = server.connection()?;
    let echo = thread::spawn(move || {
        let mut socket = Socket::secure(far, connection);
        let mut bytes = [0; 4];
        if socket.read_exact(&mut bytes).is_ok() {
            socket.write_all(&bytes).unwrap();
            socket.flush().unwrap();
            socket.close();
        }
    });
    let mut socket = Socket::secure(near, client.connection()?);
    let mut run = || -> io::Result<()> {
        assert!(socket.handshake()?);
        socket.write_all(b"ping")?;
        socket.flush()?;
        let mut bytes = [0; 4];
        socket.read_exact(&mut bytes)?;
        assert_eq!(&bytes, b"ping");
        // Its end is told from one that was cut off.
        assert_eq!(socket.read(&mut bytes)?, 0);
        Ok(())
    };
    let result = run();
    if result.is_err() {
        // The server waits for the rest otherwise.
        let _ = socket.stream().shutdown(std::net::Shutdown::Both);
    }
    echo.join().unwrap();
    result.map(|()| socket)
}

#[test]
fn a_narrow_client_gets_one_version_one_group_and_one_suite() {
    let (_dir, certificates) = certificates();
    let client = Client::new(&TlsArgs::narrow(certificates.ca(), "echo.bench"), "127.0.0.1", Alpn::Http1).unwrap();
    let socket = shake(&server(&certificates), &client).unwrap();
    let expected = Negotiated {
        version: "TLSv1_3".to_owned(),
        cipher_suite: "TLS13_AES_128_GCM_SHA256".to_owned(),
        group: Some("X25519".to_owned()),
    };
    assert_eq!(socket.negotiated(), Some(expected));
}

#[test]
fn arguments_give_the_same_again() {
    let narrow = TlsArgs::narrow("/ca.pem".into(), "echo.bench");
    let arguments = narrow.to_arguments();
    let parsed = Wrapper::try_parse_from([OsString::from("load")].into_iter().chain(arguments)).unwrap().tls;
    assert_eq!(format!("{parsed:?}"), format!("{narrow:?}"));
}

#[test]
fn sessions_are_resumed_only_with_a_memory() {
    let (_dir, certificates) = certificates();
    let server = server(&certificates);
    let client = Client::new(&TlsArgs::narrow(certificates.ca(), "echo.bench"), "echo.bench", Alpn::Http1).unwrap();
    for _ in 0..3 {
        assert!(!shake(&server, &client).unwrap().is_resumed());
    }
    let remembering = client.with_memory();
    assert!(!shake(&server, &remembering).unwrap().is_resumed());
    for _ in 0..3 {
        assert!(shake(&server, &remembering).unwrap().is_resumed());
    }
    assert!(!shake(&server, &client.with_memory()).unwrap().is_resumed());
}

#[test]
fn the_name_and_the_root_are_checked_unless_told_otherwise() {
    let (_dir, own) = certificates();
    let (_other_dir, other) = certificates();
    let server = server(&own);
    let args = |ca: &Certificates, name: &str| TlsArgs::narrow(ca.ca(), name);
    for wrong in [args(&own, "other.bench"), args(&other, "echo.bench")] {
        let error = shake(&server, &Client::new(&wrong, "echo.bench", Alpn::Http1).unwrap()).err().unwrap();
        assert!(is_tls_error(&error), "{error}");
    }
    let insecure = args(&own, "other.bench").without_checks();
    shake(&server, &Client::new(&insecure, "other.bench", Alpn::Http1).unwrap()).unwrap();
    let nothing = TlsArgs { ca: None, ..args(&own, "echo.bench") };
    assert!(Client::new(&nothing, "echo.bench", Alpn::Http1).unwrap_err().to_string().contains("--insecure"));
}

#[test]
fn what_is_not_tls_is_a_tls_error_and_an_end_is_none() {
    let (_dir, certificates) = certificates();
    let client = Client::new(&TlsArgs::narrow(certificates.ca(), "echo.bench"), "echo.bench", Alpn::Http1).unwrap();
    let (near, mut far) = pair();
    far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    let error = Socket::secure(near, client.connection().unwrap()).handshake().unwrap_err();
    assert!(is_tls_error(&error), "{error}");

    let (near, far) = pair();
    drop(far);
    let error = Socket::secure(near, client.connection().unwrap()).handshake().unwrap_err();
    assert!(!is_tls_error(&error), "{error}");
    assert!(matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{error}");
}

#[test]
fn a_key_of_another_certificate_and_an_unknown_suite_are_refused() {
    let (_dir, certificates) = certificates();
    let file = |name: &str| certificates.dir().join(name);
    assert!(Server::new(&file("server.pem"), &file("a.key")).is_err());
    assert!(Server::new(&file("server.key"), &file("server.key")).is_err());
    let narrow = TlsArgs::narrow(certificates.ca(), "echo.bench");
    let args = TlsArgs { cipher_suite: Some("NULL".to_owned()), ..narrow.clone() };
    let error = Client::new(&args, "echo.bench", Alpn::Http1).unwrap_err().to_string();
    assert!(error.contains("TLS13_AES_256_GCM_SHA384"), "{error}");
    let args = TlsArgs { version: Some(Version::Tls12), ..narrow };
    assert!(Client::new(&args, "echo.bench", Alpn::Http1).is_err());
}

#[test]
fn much_is_written_and_read_through_sockets_that_do_not_wait() {
    let (_dir, certificates) = certificates();
    let client = Client::new(&TlsArgs::narrow(certificates.ca(), "echo.bench"), "echo.bench", Alpn::Http1).unwrap();
    let (near, far) = pair();
    for stream in [&near, &far] {
        stream.set_nonblocking(true).unwrap();
    }
    let mut near = Socket::secure(near, client.connection().unwrap());
    let mut far = Socket::secure(far, server(&certificates).connection().unwrap());
    let data: Vec<u8> = (0..3_000_000_u32).map(|index| index as u8).collect();
    let (mut sent, mut received, mut buffer) = (0, Vec::new(), vec![0; 65_536]);
    let mut shaken = false;
    while received.len() < data.len() {
        // Neither side may give up where the other one is to move.
        if !shaken {
            shaken = near.handshake().unwrap();
        } else if sent < data.len() {
            match near.write(&data[sent..]) {
                Ok(count) => sent += count,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        } else if let Err(error) = near.flush() {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
        }
        match far.read(&mut buffer) {
            Ok(count) => received.extend_from_slice(&buffer[..count]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    assert!(!near.has_output());
    assert_eq!(received, data);
}
