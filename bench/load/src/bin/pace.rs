// pace: open-loop sender at a fixed total rate. usage: pace ADDR TOPIC conns rate size secs queues pid. Latency is counted from the intended send time.
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    Arc,
};
use std::thread;
use std::time::*;
fn cpu(pid: &str) -> f64 {
    let s = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let f: Vec<&str> = s[s.rfind(')').unwrap_or(0)..].split_whitespace().collect();
    if f.len() < 14 {
        return 0.0;
    }
    (f[12].parse::<f64>().unwrap() + f[13].parse::<f64>().unwrap()) / 100.0
}
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let n = |i: usize| a[i].parse::<usize>().unwrap();
    let (conns, rate, size, secs, queues) = (n(3), n(4) as f64, n(5), n(6), n(7));
    let pid = a[8].clone();
    let stop = Arc::new(AtomicBool::new(false));
    let bad = Arc::new(AtomicU64::new(0));
    let sent = Arc::new(AtomicU64::new(0));
    let base = Instant::now();
    let warm = 2.0f64;
    let mut hs = vec![];
    let mut ss = vec![];
    for c in 0..conns {
        let s = TcpStream::connect(&a[1]).unwrap();
        s.set_nodelay(true).unwrap();
        s.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let t0: Arc<Vec<AtomicU64>> = Arc::new((0..1 << 20).map(|_| AtomicU64::new(0)).collect());
        let (mut w, topic, stop1, t1, sent1) =
            (s.try_clone().unwrap(), a[2].clone(), stop.clone(), t0.clone(), sent.clone());
        ss.push(thread::spawn(move||{ let body=vec![b'x';size]; let mut i=0u64; let mut out=vec![]; let mut late=vec![]; let r=rate/conns as f64; let ph=c as f64*200e-6/conns as f64;
   while !stop1.load(Relaxed){ let e=base.elapsed().as_secs_f64(); out.clear(); while (i as f64)/r+ph<e { let it=(i as f64)/r+ph; let op=i+1; t1[op as usize&((1<<20)-1)].store((it*1e9) as u64,Relaxed); late.push(((e-it)*1e6) as u32); let q=op as usize%queues;
     let h=format!("{{\"code\":310,\"extFields\":{{\"a\":\"load_g\",\"b\":\"{topic}\",\"c\":\"TBW102\",\"d\":\"8\",\"e\":\"{q}\",\"f\":\"0\",\"g\":\"1700000000000\",\"h\":\"0\",\"i\":\"UNIQ_KEY\\u00017F00000100002A139A5B{op:012X}\\u0002WAIT\\u0001true\\u0002\",\"j\":\"0\",\"k\":\"false\",\"m\":\"false\",\"n\":\"broker-a\"}},\"flag\":0,\"language\":\"JAVA\",\"opaque\":{op},\"serializeTypeCurrentRPC\":\"JSON\",\"version\":453}}");
     out.extend_from_slice(&((4+h.len()+size) as u32).to_be_bytes()); out.extend_from_slice(&(h.len() as u32).to_be_bytes()); out.extend_from_slice(h.as_bytes()); out.extend_from_slice(&body); i+=1; }
    if !out.is_empty(){ if w.write_all(&out).is_err(){break} } thread::sleep(Duration::from_micros(200)); } sent1.fetch_add(i,Relaxed); late }));
        let (mut s, stop2, bad2) = (s, stop.clone(), bad.clone());
        hs.push(thread::spawn(move || {
            let mut b = vec![0u8; 1 << 20];
            let mut fill = 0;
            let mut lat: Vec<u32> = vec![];
            loop {
                let k = match s.read(&mut b[fill..]) {
                    Ok(0) | Err(_) => break,
                    Ok(k) => k,
                };
                let now = base.elapsed().as_nanos() as u64;
                fill += k;
                let mut p = 0;
                while fill - p >= 4 {
                    let len = u32::from_be_bytes(b[p..p + 4].try_into().unwrap()) as usize;
                    if fill - p < 4 + len {
                        break;
                    }
                    let hl = (u32::from_be_bytes(b[p + 4..p + 8].try_into().unwrap()) & 0xffffff) as usize;
                    let h = std::str::from_utf8(&b[p + 8..p + 8 + hl]).unwrap();
                    let g = |k: &str| -> i64 {
                        h.find(k)
                            .map(|i| {
                                h[i + k.len()..]
                                    .chars()
                                    .take_while(|c| c.is_ascii_digit())
                                    .collect::<String>()
                                    .parse()
                                    .unwrap_or(-1)
                            })
                            .unwrap_or(-1)
                    };
                    let t = t0[g("\"opaque\":") as usize & ((1 << 20) - 1)].load(Relaxed);
                    if g("\"code\":") != 0 {
                        bad2.fetch_add(1, Relaxed);
                    }
                    if t as f64 / 1e9 > warm {
                        lat.push((now.saturating_sub(t) / 1000) as u32);
                    }
                    p += 4 + len;
                }
                b.copy_within(p..fill, 0);
                fill -= p;
                if stop2.load(Relaxed) && fill == 0 {
                    break;
                }
            }
            lat
        }));
    }
    thread::sleep(Duration::from_secs_f64(warm));
    let c0 = cpu(&pid);
    let t = Instant::now();
    thread::sleep(Duration::from_secs(secs as u64));
    let c1 = cpu(&pid);
    let el = t.elapsed().as_secs_f64();
    stop.store(true, Relaxed);
    let mut late: Vec<u32> = ss.into_iter().flat_map(|h| h.join().unwrap()).collect();
    late.sort();
    let mut l: Vec<u32> = hs.into_iter().flat_map(|h| h.join().unwrap()).collect();
    l.sort();
    let q = |v: &Vec<u32>, p: f64| {
        if v.is_empty() {
            0
        } else {
            v[((v.len() - 1) as f64 * p) as usize]
        }
    };
    println!("paced {:.0} msg/s answered | broker {:.2} cpu-s/s | p50 {} p99 {} p999 {} max {} us (generator lateness p50 {} p99 {} us) | bad {}",l.len() as f64/el,(c1-c0)/el,q(&l,0.5),q(&l,0.99),q(&l,0.999),q(&l,1.0),q(&late,0.5),q(&late,0.99),bad.load(Relaxed));
}
