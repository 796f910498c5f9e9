//! temp
use std::time::{Duration,Instant}; use std::sync::Arc; use std::net::UdpSocket;
use dormouse_conntrack::{*}; use dormouse_sys::netns::Namespace;
fn cpu()->Duration{ let t=nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap(); t.into() }
fn main(){
 let p=std::env::temp_dir().join("dormouse-speed"); let ns=Arc::new(Namespace::create_at(&p).unwrap());
 ns.within(||{ for c in ["ip link set lo up","nft add table inet t","nft add chain inet t c { type filter hook prerouting priority -150; }","nft add rule inet t c ct state new counter"]{ assert!(std::process::Command::new("sh").arg("-c").arg(c.replace("{","'{").replace("}","}'")).status().unwrap().success()); } }).unwrap();
 requirements::enable_events(Some(&ns)).unwrap();
 let ns2=ns.clone();
 let gen_=std::thread::spawn(move||{ let cs:Vec<_>=(0..8).map(|_|ns2.within(||UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap()).collect(); let mut n=0u64; 
   let t=Instant::now(); while t.elapsed()<Duration::from_secs(4){ for c in &cs { let port=1+(n%60000) as u16; let ip=std::net::Ipv4Addr::new(127,0,(n/60000) as u8,9); let _=c.send_to(b"x",(ip,port)); n+=1; } }  println!("sent {n}"); });
 let rt=tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
 rt.block_on(async{ let (o,h,mut r)=Observer::new(ObserverConfig::standard(Some(ns.clone()))); let mut n=0u64; let mut lost=0; let mut batches=0u64; 
  let work=async{ h.synced().await; let c=cpu(); let t=Instant::now(); while t.elapsed()<Duration::from_secs(2){ if let Some(b)=r.next().await { batches+=1; for x in &b { match x { dormouse_model::Observation::SightLost{..}=>lost+=1, _=>n+=1 } } } } 
   let used=cpu()-c; println!("events {n} in {:?}, cpu {used:?} = {:.2} us/event, {:.1}/batch, lost {lost}", t.elapsed(), used.as_secs_f64()*1e6/n as f64, n as f64/batches as f64);
   let mut v=vec![]; for _ in 0..300 { let t=Instant::now(); let b=h.barrier(Duration::from_millis(100)).await; v.push(t.elapsed()); b.unwrap(); while r.take().is_some(){} } v.sort(); println!("barrier in storm p50 {:?} p99 {:?}", v[150], v[297]); };
  tokio::select!{ _=o.run()=>{}, _=work=>{} } });
 gen_.join().unwrap();
 rt.block_on(async{ let (o,h,mut r)=Observer::new(ObserverConfig::standard(Some(ns.clone()))); let work=async { h.synced().await; while r.take().is_some(){}
   let mut v=vec![]; for _ in 0..1000 { let t=Instant::now(); h.barrier(Duration::from_millis(100)).await.unwrap(); v.push(t.elapsed()); } v.sort(); println!("barrier idle p50 {:?} p99 {:?}", v[500], v[990]); }; tokio::select!{ _=o.run()=>{}, _=work=>{} } });
 Namespace::remove(&p).unwrap();
}
