//! Which services a port has: each request goes to the service its path names, or to none.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;

type Answer = BoxFuture<'static, Result<Response<Body>, Infallible>>;

/// Two services on one port.
#[derive(Clone)]
pub(crate) struct Either<A, B>(pub(crate) A, pub(crate) B);

/// A port with one service.
#[derive(Clone)]
pub(crate) struct Only<A>(pub(crate) A);

fn names<S: NamedService>(request: &Request<Body>) -> bool {
    let path = request.uri().path().strip_prefix('/').and_then(|path| path.split_once('/'));
    path.is_some_and(|(service, _)| service == S::NAME)
}

fn unknown() -> Answer {
    Box::pin(async { Ok(Status::unimplemented("there is no such service on this port").into_http()) })
}

impl<A, B> Service<Request<Body>> for Either<A, B>
where
    A: NamedService + Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future = Answer>,
    B: NamedService + Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future = Answer>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    /// Generated services are always ready.
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        if names::<A>(&request) {
            self.0.call(request)
        } else if names::<B>(&request) {
            self.1.call(request)
        } else {
            unknown()
        }
    }
}

impl<A> Service<Request<Body>> for Only<A>
where
    A: NamedService + Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future = Answer>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        if names::<A>(&request) { self.0.call(request) } else { unknown() }
    }
}
