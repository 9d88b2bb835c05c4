// WebSocket from both ends: over HTTP/1.1 with the library ws, over HTTP/2 (RFC 8441) with node's http2 (nghttp2) beneath ws's frames.
//
//     ws_peer.cjs server h1|h2                             echoes messages on a free port until it is killed
//     ws_peer.cjs client h1|h2 ADDRESS AUTHORITY PATH      sends messages of many sizes, expects them back, and closes with code 4001
//     ws_peer.cjs leave h1|h2 ADDRESS AUTHORITY PATH       asks a server of this script to close with a code and a reason
//
// Each prints lines of JSON; the server's first one is {"port": PORT}. As ws_peer.py, with which it can be mixed.
'use strict';

const assert = require('node:assert');
const http2 = require('node:http2');
// What an event brings; an error is thrown.
const { EventEmitter, once } = require('node:events');
const { randomBytes } = require('node:crypto');
const { Receiver, Sender, WebSocket, WebSocketServer } = require('ws');

const PROTOCOL = 'judge.echo';
const CODE = 4001;
const PATIENCE_MS = 60_000;

const say = (what) => console.log(JSON.stringify(what));

function* messages() {
  for (const size of [0, 1, 125, 126, 65_535, 65_536, 300_000, 1 << 20]) {
    yield randomBytes(size);
    yield 'ä'.repeat(size / 2);
  }
}

function serve(socket) {
  socket.on('message', (data, isBinary) => {
    const [word, code, reason] = isBinary ? [] : data.toString('latin1', 0, 64).split(':');
    if (word === 'leave') {
      socket.close(Number(code), reason);
    } else {
      socket.send(data, { binary: isBinary });
    }
  });
  socket.on('ping', (data) => say({ event: 'ping', data: data.toString() }));
  socket.on('error', (error) => say({ violation: String(error) }));
  socket.on('close', (code) => say({ event: 'closed', code }));
}

// A stream of HTTP/2 that has been accepted carries the same frames as a connection that was upgraded (RFC 8441 section 5). ws writes and
// reads them; its WebSocket itself wants a socket, which node's streams of HTTP/2 are none enough.
class Tunnel extends EventEmitter {
  constructor(stream, isServer) {
    super();
    [this.stream, this.mask, this.code] = [stream, !isServer, 1006];
    this.sender = new Sender(stream);
    const receiver = new Receiver({ isServer, maxPayload: 0 });
    receiver.on('message', (data, isBinary) => this.emit('message', data, isBinary));
    receiver.on('pong', (data) => this.emit('pong', data));
    receiver.on('ping', (data) => {
      this.sender.pong(data, this.mask);
      this.emit('ping', data);
    });
    receiver.on('conclude', (code, reason) => {
      [this.code, this.reason] = [code, reason];
      this.close(code, reason);
      stream.end();
    });
    receiver.on('error', (error) => this.emit('error', error));
    stream.on('error', (error) => this.emit('error', error));
    stream.on('end', () => this.emit('close', this.code, this.reason));
    stream.pipe(receiver);
  }

  send(data, { binary = Buffer.isBuffer(data), fin = true } = {}) {
    this.sender.send(data, { binary, fin, mask: this.mask });
  }

  ping(data) {
    this.sender.ping(data, this.mask);
  }

  close(code, reason) {
    if (!this.isClosing) {
      this.isClosing = true;
      this.sender.close(code, reason, this.mask);
    }
  }
}

const servers = {
  h1() {
    const server = new WebSocketServer({ host: '127.0.0.1', port: 0, handleProtocols: () => PROTOCOL, maxPayload: 0 });
    server.on('connection', serve);
    server.on('listening', () => say({ port: server.address().port }));
  },

  h2() {
    const server = http2.createServer({ settings: { enableConnectProtocol: true } });
    server.on('sessionError', (error) => say({ violation: String(error) }));
    server.on('stream', (stream, headers) => {
      say({ event: 'request', headers });
      if (headers[':method'] !== 'CONNECT' || headers[':protocol'] !== 'websocket') {
        stream.respond({ ':status': 400 }, { endStream: true });
        return;
      }
      stream.respond({ ':status': 200, 'sec-websocket-protocol': PROTOCOL });
      serve(new Tunnel(stream, true));
    });
    server.listen(0, '127.0.0.1', () => say({ port: server.address().port }));
  },
};

// Each gives an open WebSocket, its subprotocol, and what ends all beneath it.
const clients = {
  async h1(address, authority, path) {
    const socket = new WebSocket(`ws://${address}${path}`, [PROTOCOL], { headers: { Host: authority }, maxPayload: 0 });
    await once(socket, 'open');
    return { socket, subprotocol: socket.protocol, finish() {} };
  },

  async h2(address, authority, path) {
    const session = http2.connect(`http://${address}`);
    const [settings] = await once(session, 'remoteSettings');
    assert(settings.enableConnectProtocol, 'no SETTINGS_ENABLE_CONNECT_PROTOCOL');
    const head = { ':method': 'CONNECT', ':protocol': 'websocket', ':scheme': 'http', ':authority': authority, ':path': path };
    const stream = session.request({ ...head, 'sec-websocket-version': '13', 'sec-websocket-protocol': PROTOCOL });
    const [headers] = await once(stream, 'response');
    assert.equal(headers[':status'], 200);
    return {
      socket: new Tunnel(stream, false),
      subprotocol: headers['sec-websocket-protocol'],
      finish: () => session.close(),
    };
  },
};

async function client(version, ...where) {
  const { socket, subprotocol, finish } = await clients[version](...where);
  const closed = once(socket, 'close');
  let [same, of] = [0, 0];
  for (const message of messages()) {
    const answer = once(socket, 'message');
    socket.send(message);
    const [data, isBinary] = await answer;
    of += 1;
    same += isBinary === Buffer.isBuffer(message) && data.equals(Buffer.from(message));
  }
  // In fragments, with a ping between them.
  const [answer, pong] = [once(socket, 'message'), once(socket, 'pong')];
  socket.send('one ', { fin: false });
  socket.ping('between');
  socket.send('two', { fin: true });
  assert.equal((await answer)[0].toString(), 'one two');
  assert.equal((await pong)[0].toString(), 'between');
  socket.close(CODE, 'enough');
  const [code] = await closed;
  say({ subprotocol, same, of, code });
  finish();
}

async function leave(version, ...where) {
  const { socket, finish } = await clients[version](...where);
  const closed = once(socket, 'close');
  socket.send('leave:4002:as you wish');
  const [code, reason] = await closed;
  say({ code, reason: reason.toString() });
  finish();
}

const [role, version, ...rest] = process.argv.slice(2);
if (role === 'server') {
  servers[version]();
} else {
  setTimeout(() => { throw new Error('no end'); }, PATIENCE_MS).unref();
  ({ client, leave })[role](version, ...rest);
}
