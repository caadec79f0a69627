#!/usr/bin/perl
# Stands in for cloudflared in a lab: takes the token where the real one takes it, dials the edge on port 7844, says to
# systemd and at /ready that it is connected, and carries what comes to port 80 of its own host, or SSH to port 22. What it speaks with the
# edge is the lab's own: a line with the token, then the bytes of one connection.
use strict;
use warnings;
use IO::Select;
use IO::Socket::INET;
use Socket;

if (@ARGV and $ARGV[0] eq '--version') {
    print "cloudflared version %VERSION% (a stand-in of the lab)\n";
    exit 0;
}
my $metrics;
my @words;
while (defined(my $word = shift @ARGV)) {
    if ($word eq '--metrics') { $metrics = shift @ARGV }
    elsif ($word eq '--no-autoupdate') { }
    else { push @words, $word }
}
"@words" eq 'tunnel run' or die "cloudflared: want `tunnel run`, and no token in the arguments\n";
my $file = $ENV{TUNNEL_TOKEN_FILE} or die "cloudflared: no TUNNEL_TOKEN_FILE\n";
open(my $in, '<', $file) or die "cloudflared: $file: $!\n";
chomp(my $token = <$in> // '');
close $in;
$token ne '' or die "cloudflared: $file has no token\n";
$SIG{CHLD} = 'IGNORE';

my $listener = IO::Socket::INET->new(LocalAddr => $metrics, Listen => 5, ReuseAddr => 1)
    or die "cloudflared: $metrics: $@\n";
my ($edge, $told);

sub dial {
    $edge = IO::Socket::INET->new(PeerAddr => 'region1.v2.argotunnel.com', PeerPort => 7844, Timeout => 5) or return;
    syswrite($edge, "$token\n");
    # The edge says whether it knows the token.
    my $said = '';
    if (!IO::Select->new($edge)->can_read(5) or !sysread($edge, $said, 1) or $said ne '+') {
        undef $edge;
        print STDERR "cloudflared: the edge does not take the token\n";
        return;
    }
    return if $told++ or !$ENV{NOTIFY_SOCKET};
    socket(my $to, AF_UNIX, SOCK_DGRAM, 0) or return;
    my $name = $ENV{NOTIFY_SOCKET};
    $name =~ s/^@/\0/;
    send($to, 'READY=1', 0, sockaddr_un($name));
}

# Carries one connection, whose first bytes are these, to the web server of this host, or to its sshd.
sub carry {
    my ($first) = @_;
    my $port = $first =~ /^SSH-/ ? 22 : 80;
    my $web = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port, Timeout => 5) or exit 1;
    syswrite($web, $first);
    my $both = IO::Select->new($edge, $web);
    while (my @ready = $both->can_read(30)) {
        for my $from (@ready) {
            my $to = $from == $web ? $edge : $web;
            sysread($from, my $bytes, 65536) or exit 0;
            syswrite($to, $bytes);
        }
    }
    exit 0;
}

my $next = 0;
while (1) {
    if (!$edge and time >= $next) {
        $next = time + 1;
        dial();
    }
    my $all = IO::Select->new($listener);
    $all->add($edge) if $edge;
    for my $from ($all->can_read(0.5)) {
        if ($from == $listener) {
            my $client = $listener->accept or next;
            sysread($client, my $head, 4096);
            my $status = $edge ? '200 OK' : '503 Service Unavailable';
            syswrite($client, "HTTP/1.1 $status\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            close $client;
        } elsif (sysread($from, my $bytes, 65536)) {
            my $child = fork;
            if (defined $child and $child == 0) { carry($bytes) }
            # The child has it; the next connection is another one.
            undef $edge;
            $next = 0;
        } else {
            undef $edge;
        }
    }
}
