#!/usr/bin/perl
# Stands in for Cloudflare's API in a lab: cloudflare.pl SOCKET NAME-SERVER ZONE, with the one token that it knows on
# standard input. Of all calls it has those with which an ACME client sets a TXT record and takes it away again; the
# record goes into the zone of the lab's name server.
use strict;
use warnings;
use IO::Socket::UNIX;
use JSON::PP;

my ($path, $server, $zone) = @ARGV;
chomp(my $token = <STDIN> // '');
$token ne '' or die "cloudflare: no token on standard input\n";
my $zone_id = '1ab' . '0' x 29;
my ($made, %record) = 0;

# Says yes or no to `update …` at the name server.
sub update {
    open(my $to, '|-', 'nsupdate') or return;
    print $to "server $server\n@_\nsend\n";
    return close $to;
}

# Status, result, and where it is an error, Cloudflare's number and words for it.
sub call {
    my ($method, $target, $bearer, $body) = @_;
    return (403, undef, 9109, 'Invalid access token') if $bearer ne $token;
    if ($method eq 'GET' and $target =~ m{^/zones\?(?:.*&)?name=([^&]*)}) {
        return (200, $1 eq $zone ? [{id => $zone_id, name => $zone, status => 'active'}] : []);
    }
    my ($id, $rest, $query) = $target =~ m{^/zones/([^/?]+)/dns_records(?:/([^/?]+))?(?:\?(.*))?$}
        or return (404, undef, 7003, 'Could not route to this place');
    return (403, undef, 10000, 'Authentication error') if $id ne $zone_id;
    if ($method eq 'POST' and !defined $rest) {
        my $asked = eval { JSON::PP->new->utf8->decode($body) } // {};
        my ($type, $name, $text) = map { $asked->{$_} // '' } qw(type name content);
        my $whole = $type eq 'TXT' && $name =~ /^[\w.-]+\.\Q$zone\E$/ && $text =~ /^"?([\w-]+)"?$/;
        return (400, undef, 9000, 'The lab takes TXT records of its own zone alone') unless $whole;
        update("update add $name. 1 TXT \"$1\"") or return (500, undef, 1000, 'The name server refused it');
        my $new = sprintf '%032x', ++$made;
        $record{$new} = {type => 'TXT', name => $name, content => $text, ttl => 120};
        return (200, {id => $new, %{$record{$new}}});
    }
    if ($method eq 'GET' and !defined $rest) {
        my %asked = map { split /=/, $_, 2 } split /&/, $query // '';
        my @found = grep { $record{$_}{name} eq ($asked{name} // '') and $record{$_}{content} eq ($asked{content} // '') } keys %record;
        return (200, [map { {id => $_, %{$record{$_}}} } @found]);
    }
    if ($method eq 'DELETE' and defined $rest) {
        my $gone = delete $record{$rest} or return (404, undef, 81044, 'Record does not exist.');
        my ($text) = $gone->{content} =~ /([\w-]+)/;
        update("update delete $gone->{name}. TXT \"$text\"") or return (500, undef, 1000, 'The name server refused it');
        return (200, {id => $rest});
    }
    return (405, undef, 10405, 'Method not allowed');
}

$SIG{PIPE} = 'IGNORE';
unlink $path;
my $listener = IO::Socket::UNIX->new(Local => $path, Listen => 5) or die "cloudflare: $path: $!\n";
while (1) {
    my $client = $listener->accept or next;
    # The web server before it sends a whole request at once, with its length.
    my ($head, $body) = ('', '');
    while (my $line = <$client>) {
        last if $line eq "\r\n";
        $head .= $line;
    }
    my ($method, $target) = $head =~ m{^(\S+) /client/v4(/\S*) } or next;
    my $bearer = $head =~ /^Authorization: Bearer (\S+)\r$/mi ? $1 : '';
    read($client, $body, $1) if $head =~ /^Content-Length: (\d+)\r$/mi;
    my ($status, $result, $code, $message) = call($method, $target, $bearer, $body);
    my %answer = (result => $result, messages => [], errors => [], success => JSON::PP::true);
    @answer{qw(success errors)} = (JSON::PP::false, [{code => $code, message => $message}]) if $code;
    if (ref $result eq 'ARRAY') {
        my $all = @$result;
        $answer{result_info} = {page => 1, per_page => 50, count => $all, total_count => $all, total_pages => 1};
    }
    my $text = JSON::PP->new->utf8->encode(\%answer);
    print $client "HTTP/1.0 $status Lab\r\nContent-Type: application/json\r\nContent-Length: ${\length $text}\r\n\r\n$text";
    close $client;
}
