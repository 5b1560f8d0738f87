//! Runs the fake node of the API tests against a control by hand:
//! `fake-node ADDRESS PKI_DIR`.

#[path = "../tests/api/support/fake_node.rs"]
#[allow(dead_code, reason = "what tests look at")]
mod fake_node;

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [address, pki] = args.as_slice() else {
        eprintln!("usage: fake-node ADDRESS PKI_DIR");
        std::process::exit(2);
    };
    let _node = fake_node::FakeNode::connect(address, pki.as_ref(), 1 << 20, 1 << 30).await;
    std::future::pending::<()>().await;
}
