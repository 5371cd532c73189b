// mqload: bounded load over the remoting protocol to a broker on loopback.
// usage: mqload send|pull ADDR TOPIC conns inflight size seconds [queues] [broker_pid]
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    Arc,
};
use std::time::{Duration, Instant};
fn frame(out: &mut Vec<u8>, hdr: &[u8], body: &[u8]) {
    out.extend_from_slice(&((4 + hdr.len() + body.len()) as u32).to_be_bytes());
    out.extend_from_slice(&(hdr.len() as u32).to_be_bytes());
    out.extend_from_slice(hdr);
    out.extend_from_slice(body);
}
fn cpu(pid: u32) -> f64 {
    if pid == 0 {
        return 0.0;
    }
    let s = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let t = &s[s.rfind(')').unwrap_or(0)..];
    let f: Vec<&str> = t.split_whitespace().collect();
    if f.len() < 14 {
        return 0.0;
    }
    (f[12].parse::<f64>().unwrap() + f[13].parse::<f64>().unwrap()) / 100.0
}
fn rss(pid: u32) -> u64 {
    std::fs::read_to_string(format!("/proc/{pid}/status"))
        .ok()
        .and_then(|s| {
            s.lines().find(|l| l.starts_with("VmRSS")).and_then(|l| l.split_whitespace().nth(1)?.parse().ok())
        })
        .unwrap_or(0)
}
static EMPTY: AtomicU64 = AtomicU64::new(0);
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let (mode, addr, topic) = (a[1].clone(), a[2].clone(), a[3].clone());
    let n = |i: usize, d: usize| a.get(i).and_then(|s| s.parse().ok()).unwrap_or(d);
    let (conns, inflight, size, secs, queues, pid) = (n(4, 4), n(5, 64), n(6, 1024), n(7, 10), n(8, 8), n(9, 0) as u32);
    let stop = Arc::new(AtomicBool::new(false));
    let warm = Arc::new(AtomicBool::new(true));
    let done = Arc::new(AtomicU64::new(0));
    let bad = Arc::new(AtomicU64::new(0));
    let bytes = Arc::new(AtomicU64::new(0));
    let mut hs = vec![];
    for c in 0..conns {
        let (mode, addr, topic, stop, warm, done, bad, bytes) = (
            mode.clone(),
            addr.clone(),
            topic.clone(),
            stop.clone(),
            warm.clone(),
            done.clone(),
            bad.clone(),
            bytes.clone(),
        );
        hs.push(std::thread::spawn(move || {
            let mut s = TcpStream::connect(&addr).unwrap(); s.set_nodelay(true).unwrap();
            s.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let batch: usize = std::env::var("BATCH").ok().and_then(|v| v.parse().ok()).unwrap_or(1);
            let body = if batch == 1 { vec![b'x'; size] } else { let mut v = vec![]; let pr = b"UNIQ_KEY\x017F00000100002A139A5B000000000001\x02WAIT\x01true\x02"; for _ in 0..batch { v.extend_from_slice(&((4+4+4+4+4+size+2+pr.len()) as u32).to_be_bytes()); v.extend_from_slice(&[0u8;12]); v.extend_from_slice(&(size as u32).to_be_bytes()); v.resize(v.len()+size, b'x'); v.extend_from_slice(&(pr.len() as u16).to_be_bytes()); v.extend_from_slice(pr); } v };
            let rate: f64 = std::env::var("RATE").ok().and_then(|v| v.parse().ok()).unwrap_or(0.0); let start = Instant::now(); let mut nsent = 0u64;
            if rate > 0.0 { s.set_read_timeout(Some(Duration::from_millis(1))).unwrap(); }
            let code = if batch == 1 { 310 } else { 320 }; let mflag = batch != 1; let ring = 1usize << 16;
            let mut t0 = vec![Instant::now(); ring]; let mut lat: Vec<u32> = Vec::with_capacity(1 << 20);
            let (mut out, mut inb) = (Vec::with_capacity(1 << 20), vec![0u8; 4 << 20]);
            let (mut fill, mut opaque, mut outstanding) = (0usize, 1u32, 0usize);
            let mut off = vec![0u64; queues]; let mut q_of = vec![0usize; ring]; let mut was_warm = true; let mut empty = 0;
            while !stop.load(Relaxed) {
                if was_warm && !warm.load(Relaxed) { was_warm = false; lat.clear(); }
                out.clear();
                while outstanding < inflight && (rate == 0.0 || (nsent as f64) < start.elapsed().as_secs_f64() * rate / conns as f64) { nsent += 1;
                    let now = if rate > 0.0 { start + Duration::from_secs_f64((nsent - 1) as f64 * conns as f64 / rate) } else { Instant::now() }; let q = if mode == "send" { opaque as usize % queues } else { (c + opaque as usize * conns) % queues };
                    let h = if mode == "send" { format!("{{\"code\":{code},\"extFields\":{{\"a\":\"load_g\",\"b\":\"{topic}\",\"c\":\"TBW102\",\"d\":\"8\",\"e\":\"{q}\",\"f\":\"0\",\"g\":\"1700000000000\",\"h\":\"0\",\"i\":\"UNIQ_KEY\u{1}7F00000100002A139A5B{opaque:012X}\u{2}WAIT\u{1}true\u{2}\",\"j\":\"0\",\"k\":\"false\",\"m\":\"{mflag}\",\"n\":\"broker-a\"}},\"flag\":0,\"language\":\"JAVA\",\"opaque\":{opaque},\"serializeTypeCurrentRPC\":\"JSON\",\"version\":453}}").replace('\u{1}',"\\u0001").replace('\u{2}',"\\u0002") }
                    else { format!("{{\"code\":11,\"extFields\":{{\"consumerGroup\":\"load_c\",\"topic\":\"{topic}\",\"queueId\":\"{q}\",\"queueOffset\":\"{}\",\"maxMsgNums\":\"32\",\"sysFlag\":\"4\",\"commitOffset\":\"0\",\"suspendTimeoutMillis\":\"0\",\"subscription\":\"*\",\"subVersion\":\"0\",\"expressionType\":\"TAG\"}},\"flag\":0,\"language\":\"JAVA\",\"opaque\":{opaque},\"serializeTypeCurrentRPC\":\"JSON\",\"version\":453}}", off[q]) };
                    if mode != "send" { off[q] += 32; }
                    frame(&mut out, h.as_bytes(), if mode == "send" { &body } else { &[] });
                    t0[opaque as usize % ring] = now; q_of[opaque as usize % ring] = q; opaque += 1; outstanding += 1;
                }
                if !out.is_empty() && s.write_all(&out).is_err() { bad.fetch_add(1, Relaxed); return lat }
                let k = match s.read(&mut inb[fill..]) { Err(e) if rate > 0.0 && (e.kind() == std::io::ErrorKind::WouldBlock || e.kind() == std::io::ErrorKind::TimedOut) => continue, Ok(0) | Err(_) => { bad.fetch_add(1, Relaxed); return lat } Ok(k) => k };
                fill += k; let mut p = 0;
                while fill - p >= 4 {
                    let len = u32::from_be_bytes(inb[p..p+4].try_into().unwrap()) as usize;
                    if fill - p < 4 + len { break }
                    let hl = (u32::from_be_bytes(inb[p+4..p+8].try_into().unwrap()) & 0xffffff) as usize;
                    let ty = inb[p+4];
                    let h = &inb[p+8..p+8+hl]; let b = &inb[p+8+hl..p+4+len];
                    let (code, op) = if ty == 1 { (u16::from_be_bytes([h[0],h[1]]) as i64, u32::from_be_bytes(h[5..9].try_into().unwrap()) as i64) } else { let hs = std::str::from_utf8(h).unwrap();
                        let g = |k: &str| -> i64 { hs.find(k).map(|i| hs[i+k.len()..].chars().take_while(|c| c.is_ascii_digit() || *c=='-').collect::<String>().parse().unwrap_or(-1)).unwrap_or(-1) };
                        (g("\"code\":"), g("\"opaque\":")) };
                    let i = op as usize % ring;
                    lat.push(t0[i].elapsed().as_micros() as u32); outstanding -= 1;
                    if mode == "send" { if code == 0 { done.fetch_add(batch as u64, Relaxed); } else { if bad.fetch_add(1, Relaxed) == 0 { eprintln!("first bad: {}", String::from_utf8_lossy(&h[..h.len().min(400)])); } } }
                    else { let mut m = 0; let mut o = 0; while o + 4 <= b.len() { let l = u32::from_be_bytes(b[o..o+4].try_into().unwrap()) as usize; if l == 0 { break } o += l; m += 1; }
                        done.fetch_add(m, Relaxed); bytes.fetch_add(b.len() as u64, Relaxed);
                        if m == 0 { empty += 1; EMPTY.fetch_add(1, Relaxed); let q = q_of[i]; off[q] = 0; if code != 0 && code != 19 && code != 20 && code != 21 { bad.fetch_add(1, Relaxed); } let _ = empty; } }
                    p += 4 + len;
                }
                inb.copy_within(p..fill, 0); fill -= p;
            }
            lat
        }));
    }
    let warm_s = std::env::var("WARM").ok().and_then(|v| v.parse().ok());
    let w = warm_s.unwrap_or((secs as f64 * 0.3).max(2.0));
    std::thread::sleep(Duration::from_secs_f64(w));
    warm.store(false, Relaxed);
    let (d0, c0, t) = (done.load(Relaxed), cpu(pid), Instant::now());
    std::thread::sleep(Duration::from_secs(secs as u64));
    let (d1, c1, el) = (done.load(Relaxed), cpu(pid), t.elapsed().as_secs_f64());
    let my = cpu(std::process::id());
    let r = rss(pid);
    stop.store(true, Relaxed);
    let mut l: Vec<u32> = hs.into_iter().flat_map(|h| h.join().unwrap()).collect();
    l.sort_unstable();
    let q = |p: f64| {
        if l.is_empty() {
            0
        } else {
            l[((l.len() as f64 - 1.0) * p) as usize]
        }
    };
    eprintln!("total {} empty-pulls {}", done.load(Relaxed), EMPTY.load(Relaxed));
    println!("{mode} {:.0} msg/s | broker {:.2} cpu-us/msg | load {:.2} cpu-us/msg | p50 {} p99 {} p999 {} max {} us | bad {} | rss {} MiB", (d1-d0) as f64/el, (c1-c0)*1e6/(d1-d0).max(1) as f64, my*1e6/done.load(Relaxed).max(1) as f64, q(0.5), q(0.99), q(0.999), q(1.0), bad.load(Relaxed), r/1024);
}
