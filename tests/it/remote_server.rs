//! A scripted provider of `/v1/embeddings` on the loopback: answers by its own arithmetic, misbehaves on request, and keeps
//! the books of what it billed.
//!
//! Raw HTTP/1.1 over std's sockets, because a library's server cannot be made to cut, drip or drop an answer.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use embank::Timestamp;
use embank::embed::remote::Timer;
use futures::future::BoxFuture;
use serde_json::{Value, json};

/// What the server does with one request.
#[derive(Clone, Debug)]
pub enum Act {
    /// Answers as it should.
    Answer,
    /// Answers as it should, in the reverse order, indexes kept.
    Shuffle,
    /// Answers with this status, these headers and this body; bills nothing.
    Status(u16, Vec<(&'static str, String)>, String),
    /// Sends the first half of a good answer as if it were the whole.
    CutJson,
    /// Sends the first half of a good answer and closes the connection.
    CutConnection,
    /// Leaves out the last vector.
    WrongCount,
    /// Gives the texts that the test picks a vector that is too short.
    WrongDimension(fn(&str) -> bool),
    /// Gives the texts that the test picks a vector with NaN.
    NotANumber(fn(&str) -> bool),
    /// Sends this with status 200.
    Body(String),
    /// Sends a good answer of this many bytes too many.
    Oversized(usize),
    /// Never answers.
    Hang,
    /// Sends a byte every few milliseconds.
    Drip,
}

/// One request as the server saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Counted from 0.
    pub number: u64,
    pub inputs: Vec<String>,
    pub body: Value,
    pub headers: HashMap<String, String>,
}

/// What was billed.
#[derive(Clone, Debug, Default)]
pub struct Books {
    /// How often each text was answered well.
    pub answered: HashMap<String, u32>,
    /// How often each text was billed with an answer that is no good, or that nobody heard to its end.
    pub botched: HashMap<String, u32>,
    /// Tokens of both.
    pub tokens: u64,
}

type Script = dyn Fn(&Seen) -> Act + Send + Sync;

struct State {
    dimension: usize,
    script: Box<Script>,
    requests: AtomicU64,
    books: Mutex<Books>,
    seen: Mutex<Vec<Seen>>,
    running: Mutex<(usize, usize)>,
    is_over: AtomicBool,
}

/// The running server; it ends with its handle.
pub struct Server {
    address: SocketAddr,
    state: Arc<State>,
}

impl Server {
    pub fn start(dimension: usize, script: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            dimension,
            script: Box::new(script),
            requests: AtomicU64::new(0),
            books: Mutex::default(),
            seen: Mutex::default(),
            running: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.is_over.load(Ordering::SeqCst) {
                    return;
                }
                let shared = shared.clone();
                // A client that goes away in the middle is one of the things that are tried.
                std::thread::spawn(move || stream.and_then(|stream| serve(&shared, stream)));
            }
        });
        Self { address, state }
    }

    /// One that always answers as it should.
    pub fn honest(dimension: usize) -> Self {
        Self::start(dimension, |_| Act::Answer)
    }

    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub fn books(&self) -> Books {
        self.state.books.lock().unwrap().clone()
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::SeqCst)
    }

    /// The most requests that were under way at once.
    pub fn most_concurrent(&self) -> usize {
        self.state.running.lock().unwrap().1
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::SeqCst);
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
    }
}

/// The vector that the server gives a text: not of unit norm, different for different texts.
pub fn vector_of(text: &str, dimension: usize) -> Vec<f32> {
    let mut state = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        // FNV-1a
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let draw = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0) * 3.0
    };
    (0..dimension).map(draw).collect()
}

/// The same, scaled to unit norm.
pub fn unit_vector_of(text: &str, dimension: usize) -> Vec<f32> {
    let vector = vector_of(text, dimension);
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.iter().map(|x| x / norm).collect()
}

/// Tokens that the server bills for a text.
pub fn tokens_of(text: &str) -> u64 {
    text.len() as u64 / 4 + 1
}

fn serve(state: &State, stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    while let Some(seen) = read_request(state, &mut reader)? {
        {
            let mut running = state.running.lock().unwrap();
            running.0 += 1;
            running.1 = running.1.max(running.0);
        }
        let act = (state.script)(&seen);
        state.seen.lock().unwrap().push(seen.clone());
        let kept_alive = perform(state, &seen, act, &mut stream);
        state.running.lock().unwrap().0 -= 1;
        if !kept_alive? {
            break;
        }
    }
    Ok(())
}

fn read_request(state: &State, reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<Seen>> {
    let mut first = String::new();
    if reader.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    assert!(first.starts_with("POST /v1/embeddings HTTP/1.1"), "{first}");
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut body = vec![0; headers["content-length"].parse().unwrap()];
    reader.read_exact(&mut body)?;
    let body: Value = serde_json::from_slice(&body).unwrap();
    let inputs = body["input"].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect();
    Ok(Some(Seen { number: state.requests.fetch_add(1, Ordering::SeqCst), inputs, body, headers }))
}

/// Does what the script says. Whether the connection goes on.
fn perform(state: &State, seen: &Seen, act: Act, stream: &mut TcpStream) -> std::io::Result<bool> {
    let wants_base64 = seen.body["encoding_format"] == "base64";
    let answer = |change: &dyn Fn(&str, Vec<f32>) -> Vec<f32>, texts: &[String]| {
        let items = texts.iter().enumerate().map(|(index, text)| {
            let vector = change(text, vector_of(text, state.dimension));
            json!({"object": "embedding", "index": index, "embedding": encode(&vector, wants_base64)})
        });
        (items.collect::<Vec<_>>(), seen.inputs.iter().map(|text| tokens_of(text)).sum::<u64>())
    };
    let unchanged = |_: &str, vector: Vec<f32>| vector;
    let envelope = |(items, tokens): (Vec<Value>, u64)| {
        json!({"object": "list", "data": items, "model": seen.body["model"],
               "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})
        .to_string()
    };
    let bill = |is_good: &dyn Fn(&str) -> bool| {
        let mut books = state.books.lock().unwrap();
        for text in &seen.inputs {
            books.tokens += tokens_of(text);
            let book = if is_good(text) { &mut books.answered } else { &mut books.botched };
            *book.entry(text.clone()).or_default() += 1;
        }
    };
    let good = envelope(answer(&unchanged, &seen.inputs));
    match act {
        Act::Answer => {
            bill(&|_| true);
            respond(stream, 200, &[], &good)?;
        }
        Act::Shuffle => {
            bill(&|_| true);
            let (mut items, tokens) = answer(&unchanged, &seen.inputs);
            items.reverse();
            respond(stream, 200, &[], &envelope((items, tokens)))?;
        }
        Act::Status(status, headers, body) => respond(stream, status, &headers, &body)?,
        Act::CutJson => {
            bill(&|_| false);
            respond(stream, 200, &[], good.get(..good.len() / 2).unwrap())?;
        }
        Act::CutConnection => {
            bill(&|_| false);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", good.len());
            stream.write_all(head.as_bytes())?;
            stream.write_all(&good.as_bytes()[..good.len() / 2])?;
            return Ok(false);
        }
        Act::WrongCount => {
            bill(&|_| false);
            let all_but_one = seen.inputs.get(1..).unwrap();
            respond(stream, 200, &[], &envelope(answer(&unchanged, all_but_one)))?;
        }
        Act::WrongDimension(is_picked) => {
            bill(&|text| !is_picked(text));
            let short = |text: &str, mut vector: Vec<f32>| {
                vector.truncate(vector.len() - usize::from(is_picked(text)));
                vector
            };
            respond(stream, 200, &[], &envelope(answer(&short, &seen.inputs)))?;
        }
        Act::NotANumber(is_picked) => {
            bill(&|text| !is_picked(text));
            let spoilt = |text: &str, mut vector: Vec<f32>| {
                if is_picked(text) {
                    vector[0] = f32::NAN;
                }
                vector
            };
            respond(stream, 200, &[], &envelope(answer(&spoilt, &seen.inputs)))?;
        }
        Act::Body(body) => respond(stream, 200, &[], &body)?,
        Act::Oversized(excess) => {
            bill(&|_| false);
            // White space after the value is still JSON.
            respond(stream, 200, &[], &(good + &" ".repeat(excess)))?;
        }
        Act::Hang => {
            // Until the client goes away.
            let _ = stream.read_to_end(&mut Vec::new());
            return Ok(false);
        }
        Act::Drip => {
            bill(&|_| false);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")?;
            while stream.write_all(b" ").is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
            return Ok(false);
        }
    }
    Ok(true)
}

/// JSON has no NaN; servers write `null` for it.
fn encode(vector: &[f32], as_base64: bool) -> Value {
    if as_base64 {
        let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
        return json!(base64::engine::general_purpose::STANDARD.encode(bytes));
    }
    json!(vector.iter().map(|x| x.is_finite().then_some(*x)).collect::<Vec<_>>())
}

fn respond(stream: &mut TcpStream, status: u16, headers: &[(&str, String)], body: &str) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} Scripted\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n{body}").as_bytes())
}

/// Time that passes only by sleeping, which takes no time.
#[derive(Clone)]
pub struct SkippingTimer {
    start: Timestamp,
    elapsed: Arc<Mutex<Duration>>,
}

impl SkippingTimer {
    pub fn at(start: Timestamp) -> Self {
        Self { start, elapsed: Arc::default() }
    }

    pub fn advance(&self, by: Duration) {
        *self.elapsed.lock().unwrap() += by;
    }
}

impl Timer for SkippingTimer {
    fn elapsed(&self) -> Duration {
        *self.elapsed.lock().unwrap()
    }

    fn now(&self) -> Timestamp {
        self.start.plus(self.elapsed())
    }

    fn sleep(&self, pause: Duration) -> BoxFuture<'static, ()> {
        let timer = self.clone();
        Box::pin(async move {
            timer.advance(pause);
            tokio::task::yield_now().await;
        })
    }
}
