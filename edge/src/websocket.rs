//! Knows: the server's side of RFC 6455: handshake, frames, limits. Never: a socket, JSON.
//!
//! Written here rather than taken from a library as an idle connection must hold no buffer and a
//! push must be written as one shared, ready frame (docs/decisions/0002).

use base64::Engine as _;
use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, Method, header};
use sha1::{Digest as _, Sha1};

/// Bytes of the longest header of a frame that a server sends.
pub const HEADER_MAX_BYTES: usize = 10;
/// Bytes of a control frame's payload.
const CONTROL_MAX_BYTES: usize = 125;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// More of the message before.
    Continuation,
    /// UTF-8 text.
    Text,
    /// Bytes.
    Binary,
    /// The end.
    Close,
    /// Asks for a pong.
    Ping,
    /// Answers a ping.
    Pong,
}

impl Opcode {
    const fn code(self) -> u8 {
        match self {
            Self::Continuation => 0,
            Self::Text => 1,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Continuation),
            1 => Some(Self::Text),
            2 => Some(Self::Binary),
            8 => Some(Self::Close),
            9 => Some(Self::Ping),
            10 => Some(Self::Pong),
            _ => None,
        }
    }

    const fn is_control(self) -> bool {
        self.code() >= 8
    }
}

/// Something whole that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A text message, valid UTF-8.
    Text(Bytes),
    /// A binary message.
    Binary(Bytes),
    /// A ping; answer with a pong of the same payload.
    Ping(Bytes),
    /// A pong.
    Pong,
    /// The peer closes; its code, if it gave one.
    Close(Option<u16>),
}

/// Why the connection has to be closed, with the code to close it with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// Not masked, a reserved bit or opcode, a bad length or fragment: 1002.
    #[error("not a frame that a client may send")]
    Malformed,
    /// Text that is not UTF-8: 1007.
    #[error("text that is not UTF-8")]
    NotUtf8,
    /// Longer than allowed: 1009.
    #[error("a message longer than allowed")]
    TooLong,
}

impl ProtocolError {
    /// The close code.
    #[must_use]
    pub const fn close_code(self) -> u16 {
        match self {
            Self::Malformed => 1002,
            Self::NotUtf8 => 1007,
            Self::TooLong => 1009,
        }
    }
}

/// Reads a client's frames. Holds no memory between whole messages.
#[derive(Debug)]
pub struct Decoder {
    /// What is not yet a whole frame.
    partial: BytesMut,
    /// The message whose last fragment has not come, and what it is.
    message: Option<(Opcode, BytesMut)>,
    message_max_bytes: usize,
}

impl Decoder {
    /// Messages longer than this are refused before they are buffered.
    #[must_use]
    pub fn new(message_max_bytes: usize) -> Self {
        Self {
            partial: BytesMut::new(),
            message: None,
            message_max_bytes,
        }
    }

    /// Feeds what the socket gave.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.partial.extend_from_slice(bytes);
    }

    /// Bytes that wait for more.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.partial.len() + self.message.as_ref().map_or(0, |(_, bytes)| bytes.len())
    }

    /// The next event, if it is whole.
    ///
    /// # Errors
    /// When the client broke the protocol; the decoder must not be used after that.
    pub fn next_event(&mut self) -> Result<Option<Event>, ProtocolError> {
        loop {
            let Some((opcode, is_last, payload)) = self.frame()? else {
                if self.partial.is_empty() {
                    self.partial = BytesMut::new();
                }
                return Ok(None);
            };
            if opcode.is_control() {
                return control(opcode, payload.freeze()).map(Some);
            }
            if let Some(event) = self.data(opcode, is_last, payload)? {
                return Ok(Some(event));
            }
        }
    }

    fn data(
        &mut self,
        opcode: Opcode,
        is_last: bool,
        payload: BytesMut,
    ) -> Result<Option<Event>, ProtocolError> {
        let (opcode, bytes) = match (opcode, self.message.take()) {
            (Opcode::Continuation, Some((opcode, mut bytes))) => {
                bytes.extend_from_slice(&payload);
                (opcode, bytes)
            }
            // A continuation of nothing, or a new message inside another.
            (Opcode::Continuation, None) | (_, Some(_)) => return Err(ProtocolError::Malformed),
            (opcode, None) => (opcode, payload),
        };
        if !is_last {
            self.message = Some((opcode, bytes));
            return Ok(None);
        }
        if opcode == Opcode::Binary {
            return Ok(Some(Event::Binary(bytes.freeze())));
        }
        if simdutf8::basic::from_utf8(&bytes).is_err() {
            return Err(ProtocolError::NotUtf8);
        }
        Ok(Some(Event::Text(bytes.freeze())))
    }

    /// Takes one whole frame off the front and unmasks it.
    fn frame(&mut self) -> Result<Option<(Opcode, bool, BytesMut)>, ProtocolError> {
        let [first, second, ..] = self.partial[..] else {
            return Ok(None);
        };
        let opcode = Opcode::from_code(first & 0x0f).ok_or(ProtocolError::Malformed)?;
        let (is_last, reserved, masked) = (first & 0x80 != 0, first & 0x70, second & 0x80 != 0);
        if reserved != 0 || !masked || (opcode.is_control() && !is_last) {
            return Err(ProtocolError::Malformed);
        }
        let (header, length) = match second & 0x7f {
            126 => {
                let Some(bytes) = self.partial.get(2..4) else {
                    return Ok(None);
                };
                let length = u16::from_be_bytes(bytes.try_into().expect("two bytes"));
                if length < 126 {
                    return Err(ProtocolError::Malformed);
                }
                (4, u64::from(length))
            }
            127 => {
                let Some(bytes) = self.partial.get(2..10) else {
                    return Ok(None);
                };
                let length = u64::from_be_bytes(bytes.try_into().expect("eight bytes"));
                if length <= u64::from(u16::MAX) || length >> 63 != 0 {
                    return Err(ProtocolError::Malformed);
                }
                (10, length)
            }
            length => (2, u64::from(length)),
        };
        let length = usize::try_from(length).map_err(|_| ProtocolError::TooLong)?;
        if opcode.is_control() && length > CONTROL_MAX_BYTES {
            return Err(ProtocolError::Malformed);
        }
        // By the header alone: of what is too long nothing is waited for.
        let earlier = match &self.message {
            Some((_, bytes)) if opcode == Opcode::Continuation => bytes.len(),
            _ => 0,
        };
        if length > self.message_max_bytes - earlier {
            return Err(ProtocolError::TooLong);
        }
        if self.partial.len() < header + 4 + length {
            return Ok(None);
        }
        self.partial.advance(header);
        let mask: [u8; 4] = self.partial[..4].try_into().expect("four bytes");
        self.partial.advance(4);
        let mut payload = self.partial.split_to(length);
        unmask(&mut payload, mask);
        Ok(Some((opcode, is_last, payload)))
    }
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let wide = u64::from_ne_bytes([
        mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3],
    ]);
    let (chunks, rest) = payload.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

fn control(opcode: Opcode, payload: Bytes) -> Result<Event, ProtocolError> {
    match opcode {
        Opcode::Ping => Ok(Event::Ping(payload)),
        Opcode::Pong => Ok(Event::Pong),
        _ => match payload[..] {
            [] => Ok(Event::Close(None)),
            [_] => Err(ProtocolError::Malformed),
            [high, low, ref reason @ ..] => {
                let code = u16::from_be_bytes([high, low]);
                let is_valid = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
                if !is_valid {
                    return Err(ProtocolError::Malformed);
                }
                if std::str::from_utf8(reason).is_err() {
                    return Err(ProtocolError::NotUtf8);
                }
                Ok(Event::Close(Some(code)))
            }
        },
    }
}

/// Writes an unmasked, final frame's header at the *end* of `space` and returns where it begins.
///
/// # Panics
/// When `space` is shorter than [`HEADER_MAX_BYTES`].
pub fn write_header(space: &mut [u8], opcode: Opcode, length: usize) -> usize {
    let end = space.len();
    let length = length as u64;
    let start = match length {
        0..=125 => {
            space[end - 1] = u8::try_from(length).expect("at most 125");
            end - 2
        }
        126..=0xffff => {
            space[end - 2..].copy_from_slice(&u16::try_from(length).expect("fits").to_be_bytes());
            space[end - 3] = 126;
            end - 4
        }
        _ => {
            space[end - 8..].copy_from_slice(&length.to_be_bytes());
            space[end - 9] = 127;
            end - 10
        }
    };
    space[start] = 0x80 | opcode.code();
    start
}

/// One unmasked, final frame.
#[must_use]
pub fn encode_frame(opcode: Opcode, payload: &[u8]) -> Bytes {
    let mut frame = vec![0; HEADER_MAX_BYTES];
    let start = write_header(&mut frame, opcode, payload.len());
    frame.extend_from_slice(payload);
    Bytes::from(frame).slice(start..)
}

/// A Close frame. The reason is cut to the 123 bytes that fit.
#[must_use]
pub fn close_frame(code: u16, reason: &str) -> Bytes {
    let mut end = reason.len().min(CONTROL_MAX_BYTES - 2);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend_from_slice(&reason.as_bytes()[..end]);
    encode_frame(Opcode::Close, &payload)
}

/// A request that is no proper upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeError {
    /// Not a GET.
    #[error("a WebSocket upgrade is a GET request")]
    Method,
    /// `Upgrade` and `Connection` do not ask for it.
    #[error("this is a WebSocket endpoint: send `Connection: Upgrade` and `Upgrade: websocket`")]
    NotAnUpgrade,
    /// Another version than 13.
    #[error("only WebSocket version 13 is spoken here")]
    Version,
    /// No key, or not 16 bytes of base64.
    #[error("Sec-WebSocket-Key must be 16 bytes in base64")]
    Key,
}

/// Checks the headers of an upgrade request and returns its key.
///
/// # Errors
/// When it is none.
pub fn check_upgrade(method: &Method, headers: &HeaderMap) -> Result<String, UpgradeError> {
    let has_token = |name: header::HeaderName, token: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| {
                value
                    .split(',')
                    .any(|one| one.trim().eq_ignore_ascii_case(token))
            })
    };
    if method != Method::GET {
        return Err(UpgradeError::Method);
    }
    if !has_token(header::CONNECTION, "upgrade") || !has_token(header::UPGRADE, "websocket") {
        return Err(UpgradeError::NotAnUpgrade);
    }
    if headers
        .get(header::SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version != "13")
    {
        return Err(UpgradeError::Version);
    }
    let key = headers
        .get(header::SEC_WEBSOCKET_KEY)
        .and_then(|key| key.to_str().ok());
    let key = key.ok_or(UpgradeError::Key)?;
    let decoded = base64::engine::general_purpose::STANDARD.decode(key);
    match decoded {
        Ok(bytes) if bytes.len() == 16 => Ok(key.to_owned()),
        _ => Err(UpgradeError::Key),
    }
}

/// `Sec-WebSocket-Accept` for a key (RFC 6455 §4.2.2).
#[must_use]
pub fn accept_key(key: &str) -> String {
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    base64::engine::general_purpose::STANDARD.encode(hash.finalize())
}

/// The sub-protocol to answer with: JSON if the client offers it, none if it offers none that is
/// spoken here.
#[must_use]
pub fn choose_protocol(headers: &HeaderMap) -> Option<&'static str> {
    let offers = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let offered = offers
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split(',').any(|one| one.trim() == "centrifuge-json"));
    offered.then_some("centrifuge-json")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client's frame.
    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            0..=125 => frame.push(0x80 | payload.len() as u8),
            126..=0xffff => {
                frame.push(0x80 | 126);
                frame.extend((payload.len() as u16).to_be_bytes());
            }
            _ => {
                frame.push(0x80 | 127);
                frame.extend((payload.len() as u64).to_be_bytes());
            }
        }
        let mask = [1, 2, 3, 4];
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
        frame
    }

    fn events(bytes: &[u8], step: usize) -> Result<Vec<Event>, ProtocolError> {
        let mut decoder = Decoder::new(1_000);
        let mut events = Vec::new();
        for some in bytes.chunks(step) {
            decoder.feed(some);
            while let Some(event) = decoder.next_event()? {
                events.push(event);
            }
        }
        Ok(events)
    }

    fn check(frames: &[Vec<u8>], expected: &Result<Vec<Event>, ProtocolError>) {
        let bytes = frames.concat();
        for step in [1, 2, 3, 7, bytes.len().max(1)] {
            assert_eq!(&events(&bytes, step), expected, "in steps of {step}");
        }
    }

    #[test]
    fn messages_whole_and_in_fragments() {
        let text = |text: &'static str| Event::Text(Bytes::from_static(text.as_bytes()));
        check(&[masked(0x81, b"hello")], &Ok(vec![text("hello")]));
        check(&[masked(0x81, b"")], &Ok(vec![text("")]));
        let parts = [
            masked(0x01, "h\u{e9}".as_bytes()),
            masked(0x89, b"p"),
            masked(0x80, b"llo"),
        ];
        check(
            &parts,
            &Ok(vec![Event::Ping(Bytes::from_static(b"p")), text("héllo")]),
        );
        let split = [masked(0x01, b"\xc3"), masked(0x80, b"\xa9")];
        check(&split, &Ok(vec![text("é")]));
        check(
            &[masked(0x82, b"\x00\xff")],
            &Ok(vec![Event::Binary(Bytes::from_static(b"\x00\xff"))]),
        );
        check(
            &[masked(0x8a, b"x"), masked(0x88, b"\x03\xe8")],
            &Ok(vec![Event::Pong, Event::Close(Some(1000))]),
        );
        check(&[masked(0x88, b"")], &Ok(vec![Event::Close(None)]));
        let long = vec![b'a'; 300];
        check(
            &[masked(0x81, &long)],
            &Ok(vec![Event::Text(Bytes::from(long.clone()))]),
        );
    }

    #[test]
    fn what_a_client_may_not_send() {
        use ProtocolError::{Malformed, NotUtf8, TooLong};
        let cases: Vec<(Vec<Vec<u8>>, ProtocolError)> = vec![
            (vec![vec![0x81, 0x01, b'x']], Malformed),
            (vec![masked(0xc1, b"x")], Malformed),
            (vec![masked(0x91, b"x")], Malformed),
            (vec![masked(0x83, b"x")], Malformed),
            (vec![masked(0x8b, b"x")], Malformed),
            (vec![masked(0x80, b"x")], Malformed),
            (vec![masked(0x01, b"x"), masked(0x81, b"y")], Malformed),
            (vec![masked(0x09, b"x")], Malformed),
            (vec![masked(0x89, &[0; 126])], Malformed),
            (vec![masked(0x88, b"\x03")], Malformed),
            (vec![masked(0x88, b"\x03\xed")], Malformed),
            (vec![masked(0x88, b"\x03\xe8\xff")], NotUtf8),
            (vec![masked(0x81, b"\xff")], NotUtf8),
            (vec![masked(0x81, b"\xed\xa0\x80")], NotUtf8),
            (vec![masked(0x82, &[0; 1_001])], TooLong),
            (
                vec![masked(0x02, &[0; 600]), masked(0x80, &[0; 600])],
                TooLong,
            ),
            (vec![vec![0x81, 0xfe, 0, 5, 0, 0, 0, 0]], Malformed),
            (
                vec![vec![0x81, 0xff, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0]],
                Malformed,
            ),
            (
                vec![vec![0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0]],
                Malformed,
            ),
            (
                vec![vec![0x81, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]],
                TooLong,
            ),
        ];
        for (frames, error) in cases {
            check(&frames, &Err(error));
        }
    }

    #[test]
    fn nothing_is_held_between_messages() {
        let mut decoder = Decoder::new(1_000);
        decoder.feed(&masked(0x81, b"hello"));
        assert!(decoder.next_event().unwrap().is_some());
        assert!(decoder.next_event().unwrap().is_none());
        assert_eq!((decoder.held_bytes(), decoder.partial.capacity()), (0, 0));
    }

    #[test]
    fn a_server_frame_has_the_shortest_header() {
        assert_eq!(&encode_frame(Opcode::Text, b"hi")[..], b"\x81\x02hi");
        assert_eq!(
            &encode_frame(Opcode::Text, &[b'a'; 126])[..4],
            b"\x81\x7e\x00\x7e"
        );
        assert_eq!(
            &encode_frame(Opcode::Text, &vec![b'a'; 65_536])[..3],
            b"\x81\x7f\x00"
        );
        assert_eq!(&close_frame(3501, "bad request")[..4], b"\x88\x0d\x0d\xad");
        assert!(close_frame(3501, &"é".repeat(99)).len() <= 127);
    }

    #[test]
    fn the_handshake_of_the_rfc() {
        assert_eq!(
            accept_key("dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        let mut headers = HeaderMap::new();
        headers.insert(header::CONNECTION, "keep-alive, Upgrade".parse().unwrap());
        headers.insert(header::UPGRADE, "WebSocket".parse().unwrap());
        headers.insert(header::SEC_WEBSOCKET_VERSION, "13".parse().unwrap());
        headers.insert(
            header::SEC_WEBSOCKET_KEY,
            "dGhlIHNhbXBsZSBub25jZQ==".parse().unwrap(),
        );
        assert!(check_upgrade(&Method::GET, &headers).is_ok());
        assert_eq!(
            check_upgrade(&Method::POST, &headers),
            Err(UpgradeError::Method)
        );
        headers.insert(header::SEC_WEBSOCKET_KEY, "short".parse().unwrap());
        assert_eq!(
            check_upgrade(&Method::GET, &headers),
            Err(UpgradeError::Key)
        );
    }

    fn whole(
        bytes: &[u8],
        step: usize,
        message_max_bytes: usize,
    ) -> Result<Vec<Event>, ProtocolError> {
        let mut decoder = Decoder::new(message_max_bytes);
        let mut events = Vec::new();
        for some in bytes.chunks(step) {
            decoder.feed(some);
            while let Some(event) = decoder.next_event()? {
                events.push(event);
            }
        }
        assert_eq!(decoder.held_bytes(), 0);
        Ok(events)
    }

    #[test]
    fn every_length_of_header() {
        for size in [
            0, 1, 124, 125, 126, 127, 128, 255, 256, 65_534, 65_535, 65_536,
        ] {
            let payload = vec![b'x'; size];
            for step in [1, 997, 1 << 20] {
                let text = whole(&masked(0x81, &payload), step, 65_536).unwrap();
                assert_eq!(text, [Event::Text(Bytes::from(payload.clone()))], "{size}");
                let binary = whole(&masked(0x82, &payload), step, 65_536).unwrap();
                assert_eq!(
                    binary,
                    [Event::Binary(Bytes::from(payload.clone()))],
                    "{size}"
                );
            }
        }
        let long = masked(0x81, &vec![b'x'; 65_537]);
        assert_eq!(whole(&long, 4_096, 65_536), Err(ProtocolError::TooLong));
        // Refused by its header, before any of it is kept.
        let mut decoder = Decoder::new(65_536);
        decoder.feed(&long[..14]);
        assert_eq!(decoder.next_event(), Err(ProtocolError::TooLong));
    }

    #[test]
    fn control_frames_between_all_fragments() {
        let letters = "héllo wörld".as_bytes();
        let mut frames = Vec::new();
        let mut expected = Vec::new();
        for (nth, letter) in letters.iter().enumerate() {
            let last = if nth + 1 == letters.len() { 0x80 } else { 0 };
            let opcode = u8::from(nth == 0);
            frames.push(masked(last | opcode, &[*letter]));
            if last == 0 {
                frames.push(masked(0x80 | 9, &[b'p'; 125]));
                frames.push(masked(0x80 | 10, b""));
                frames.push(masked(0, b""));
                expected.push(Event::Ping(Bytes::from_static(&[b'p'; 125])));
                expected.push(Event::Pong);
            }
        }
        expected.push(Event::Text(Bytes::from_static(letters)));
        check(&frames, &Ok(expected));
    }

    #[test]
    fn close_codes() {
        for code in [
            1000, 1001, 1002, 1003, 1007, 1011, 1012, 1014, 3000, 3999, 4000, 4999_u16,
        ] {
            let payload = [&code.to_be_bytes()[..], "é".as_bytes()].concat();
            check(
                &[masked(0x88, &payload)],
                &Ok(vec![Event::Close(Some(code))]),
            );
        }
        for code in [
            0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535_u16,
        ] {
            check(
                &[masked(0x88, &code.to_be_bytes())],
                &Err(ProtocolError::Malformed),
            );
        }
        let longest = [&[0x03, 0xe8][..], &[b'r'; 123]].concat();
        check(
            &[masked(0x88, &longest)],
            &Ok(vec![Event::Close(Some(1000))]),
        );
    }

    #[test]
    fn text_is_utf8_wherever_it_is_cut() {
        for text in [
            "κόσμε",
            "\u{feff}",
            "\0",
            "\u{ffff}\u{fdd0}",
            "\u{10ffff}",
            "👩‍👩‍👧",
            "\u{d7ff}\u{e000}",
        ] {
            for cut in 0..=text.len() {
                let (head, tail) = text.as_bytes().split_at(cut);
                let expected = Event::Text(Bytes::from_static(text.as_bytes()));
                check(
                    &[masked(0x01, head), masked(0x80, tail)],
                    &Ok(vec![expected]),
                );
            }
        }
        for bytes in [
            &b"\x80"[..],
            b"\xbf",
            b"\xc0\x80",
            b"\xc1\xbf",
            b"\xe0\x80\xaf",
            b"\xf0\x80\x80\xaf",
            b"\xed\xa0\x80",
            b"\xed\xbf\xbf",
            b"\xf4\x90\x80\x80",
            b"\xf5\x80\x80\x80",
            b"\xf8\x88\x80\x80\x80",
            b"\xfe",
            b"\xff",
            b"ok\xce",
            b"\xe2\x82",
            b"\xf0\x9f\x98",
            b"\xce\xce\xba",
        ] {
            check(&[masked(0x81, bytes)], &Err(ProtocolError::NotUtf8));
            let (head, tail) = bytes.split_at(bytes.len() / 2);
            let split = [masked(0x01, head), masked(0x80, tail)];
            check(&split, &Err(ProtocolError::NotUtf8));
            assert!(
                whole(&masked(0x82, bytes), 1, 100).is_ok(),
                "binary may be anything"
            );
        }
    }

    #[test]
    fn every_first_byte() {
        for first in 0..=u8::MAX {
            let found = whole(&masked(first, b""), 1, 100);
            let is_good = matches!(first, 0x81 | 0x82 | 0x88 | 0x89 | 0x8a);
            // The first fragment of a message is no event yet, and no error either.
            let begins = matches!(first, 0x01 | 0x02) && found == Ok(Vec::new());
            assert_eq!(found.is_ok(), is_good || begins, "{first:#04x}");
        }
    }
}
