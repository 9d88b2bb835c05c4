//! What is written to either half, sealed where it has to be.

use std::io;

use monoio::{buf::IoBuf as _, io::AsyncWriteRent as _};

use super::{
    super::{buffers::Buffer, secure::Tls},
    ReadHalf, SocketWriter, WriteHalf,
};

/// Writes all of a buffer, which holds the same bytes afterwards.
pub(crate) async fn write_all(to: &mut WriteHalf, buffer: &mut Buffer) -> io::Result<()> {
    let to = match to {
        WriteHalf::Socket(socket) => socket,
        WriteHalf::Stream(stream) => return stream.write_all(buffer).await,
    };
    let Some(tls) = to.tls.clone() else { return write_plain(to, buffer).await };
    if tls.is_kernel() {
        ready_to_write(&tls, to, buffer.len()).await?;
        return write_plain(to, buffer).await;
    }
    let mut sent = 0;
    while sent < buffer.len() {
        let mut records = tls.buffer();
        sent += tls.seal(&buffer[sent..], &mut records)?;
        let result = write_plain(to, &mut records).await;
        tls.written(result.is_ok());
        result?;
    }
    Ok(())
}

/// Before a body's last piece is written: see [`take_trailers_of`](crate::worker::http2::Stream::take_trailers_of).
pub(crate) fn pass_trailers(from: &ReadHalf, to: &WriteHalf) {
    if let (ReadHalf::Stream(from), WriteHalf::Stream(to)) = (from, to) {
        to.take_trailers_of(from);
    }
}

/// Ends one direction behind all that was written: the peer reads that, then an end that it can tell from a cut. The other
/// direction goes on.
pub(crate) async fn end(to: &mut WriteHalf) -> io::Result<()> {
    let to = match to {
        WriteHalf::Socket(socket) => socket,
        WriteHalf::Stream(stream) => {
            stream.end();
            return Ok(());
        }
    };
    if let Some(tls) = to.tls.clone() {
        if tls.is_kernel() {
            while let Err(error) = tls.kernel_end() {
                if error.kind() != io::ErrorKind::WouldBlock {
                    return Err(error);
                }
                super::super::readiness::writable(to).await?;
            }
        } else {
            let mut record = tls.buffer();
            tls.seal_end(&mut record)?;
            if !record.is_empty() {
                write_plain(to, &mut record).await?;
            }
        }
    }
    to.socket.shutdown().await
}

/// Waits until what must go out before is with the kernel.
pub(super) async fn ready_to_write(tls: &Tls, to: &SocketWriter, bytes: usize) -> io::Result<()> {
    loop {
        match tls.before_write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => super::super::readiness::writable(to).await?,
            result => return result,
        }
    }
}

pub(super) async fn write_plain(to: &mut SocketWriter, buffer: &mut Buffer) -> io::Result<()> {
    let len = buffer.len();
    let (result, bytes) = to.socket.write(buffer.lend()).await;
    buffer.restore(bytes);
    match result {
        Ok(written) if written == len => Ok(()),
        Ok(written) => write_rest(to, buffer, written).await,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => write_rest(to, buffer, 0).await,
        Err(error) => Err(error),
    }
}

/// Writes what is left of a buffer after a short write, or after none: a socket that is spliced the other way does not wait, see
/// [`Splice`](crate::worker::splice::Splice).
pub(super) async fn write_rest(to: &mut SocketWriter, buffer: &mut Buffer, mut written: usize) -> io::Result<()> {
    while written < buffer.len() {
        let (result, rest) = to.socket.write(buffer.lend().slice(written..)).await;
        buffer.restore(rest.into_inner());
        match result {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => super::super::readiness::writable(to).await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
