#!/usr/bin/perl
# Stands in for the APIs of DNS providers in a lab: dns-apis.pl SOCKET NAME-SERVER ZONE, with the one token that each
# knows on standard input, lines of HOST TOKEN. Of all calls they have those with which an ACME client sets a TXT record
# and takes it away again; the records go into the zone of the lab's name server, and each API shows its own alone.
use strict;
use warnings;
use IO::Socket::UNIX;
use JSON::PP;

my ($path, $server, $zone) = @ARGV;
my %token = map { /^(\S+) (\S+)$/ ? ($1 => $2) : () } <STDIN>;
my $json = JSON::PP->new->utf8;
my ($number, %made) = 0;

# Says yes or no to `update …` at the name server.
sub update {
    open(my $to, '|-', 'nsupdate') or return;
    print $to "server $server\n@_\nsend\n";
    return close $to;
}

# The number of a new TXT record; what is not of this zone or no such text has none. A name is one of the zone, with or
# without the zone's own behind it.
sub add {
    my ($of, $type, $name, $text, $as_said) = @_;
    $_ //= '' for $type, $name, $text;
    $name =~ s/(?:^|\.)\Q$zone\E\.?$//;
    my ($plain) = $text =~ /^"?([\w-]+)"?$/ or return;
    return unless $type eq 'TXT' && $name =~ /^[\w-]+(?:\.[\w-]+)*$/ && update("update add $name.$zone. 1 TXT \"$plain\"");
    $made{$of}{++$number} = {name => $name, text => $plain, said => $as_said};
    return 0 + $number;
}

# Whether there was such a record, which is gone now.
sub gone {
    my ($of, $id) = @_;
    my $was = delete $made{$of}{$id // ''} or return;
    return update("update delete $was->{name}.$zone. TXT \"$was->{text}\"");
}

# What a client said of those that match, each with its number as the API writes it.
sub shown {
    my ($of, $key, $write, $match) = @_;
    my $all = $made{$of};
    return [map { {%{$all->{$_}{said}}, $key => $write->($_)} } grep { !$match || $match->($all->{$_}) } sort { $a <=> $b } keys %$all];
}

my $count = sub { 0 + $_[0] };
my $hex = sub { sprintf '%032x', $_[0] };
my $uuid = sub { sprintf '00000000-0000-4000-8000-%012x', $_[0] };
my $from_hex = sub { hex(substr($_[0], -12)) };
my $bearer = qr/^Authorization: Bearer (\S+)\r$/mi;
my $zone_id = 1001;

# Cloudflare wraps each answer, and numbers its errors.
my $cf_zone = '1ab' . '0' x 29;
sub cf {
    my ($status, $result, $code, $message) = @_;
    my %answer = (result => $result, messages => [], errors => [], success => JSON::PP::true);
    @answer{qw(success errors)} = (JSON::PP::false, [{code => $code, message => $message}]) if $code;
    if (ref $result eq 'ARRAY') {
        my $all = @$result;
        $answer{result_info} = {page => 1, per_page => 50, count => $all, total_count => $all, total_pages => 1};
    }
    return ($status, \%answer);
}
sub meta { return {total => 0 + $_[0], links => {next => '', prev => ''}} }
sub page { return (200, {data => $_[0], page => 1, pages => 1, results => scalar @{$_[0]}}) }
my $not_this = 'The lab takes TXT records of its own zone alone';

# Host: how a request shows its token, what one with another is told, and the calls. Each call gets what its pattern
# took out of the path, then what was sent, the query and the head. Answers are as the clients of lego 5.2.2 read them.
my %api = (
    'api.cloudflare.com' => {
        token => $bearer,
        refusal => [cf(403, undef, 9109, 'Invalid access token')],
        calls => [
            [GET => qr{^/client/v4/zones$} => sub {
                my (undef, $query) = @_;
                cf(200, ($query->{name} // '') eq $zone ? [{id => $cf_zone, name => $zone, status => 'active'}] : []);
            }],
            [POST => qr{^/client/v4/zones/$cf_zone/dns_records$} => sub {
                my ($said) = @_;
                my $kept = {type => 'TXT', name => $said->{name}, content => $said->{content}, ttl => 120};
                my $id = add('cloudflare', @$said{qw(type name content)}, $kept) or return cf(400, undef, 9000, $not_this);
                cf(200, {%$kept, id => $hex->($id)});
            }],
            [GET => qr{^/client/v4/zones/$cf_zone/dns_records$} => sub {
                my (undef, $query) = @_;
                my $asked = sub { my $said = $_[0]{said}; !grep { $said->{$_} ne ($query->{$_} // '') } qw(name content) };
                cf(200, shown('cloudflare', 'id', $hex, $asked));
            }],
            [DELETE => qr{^/client/v4/zones/$cf_zone/dns_records/(\w+)$} => sub {
                gone('cloudflare', $from_hex->($_[0])) ? cf(200, {id => $_[0]}) : cf(404, undef, 81044, 'Record does not exist.');
            }],
        ],
    },
    'api.digitalocean.com' => {
        token => $bearer,
        refusal => [401, {id => 'Unauthorized', message => 'Unable to authenticate you'}],
        calls => [
            [POST => qr{^/v2/domains/\Q$zone\E/records$} => sub {
                my ($said) = @_;
                my $id = add('digitalocean', @$said{qw(type name data)}, $said) or return (422, {id => 'unprocessable_entity', message => $not_this});
                (201, {domain_record => {%$said, id => $id}});
            }],
            [DELETE => qr{^/v2/domains/\Q$zone\E/records/(\d+)$} => sub {
                gone('digitalocean', $_[0]) ? 204 : (404, {id => 'not_found', message => 'no such record'});
            }],
        ],
    },
    # Its records are sets of one name and type; each change is an action, which is over at once here.
    'api.hetzner.cloud' => {
        token => $bearer,
        refusal => [401, {error => {code => 'unauthorized', message => 'unable to authenticate'}}],
        calls => [
            [POST => qr{^/v1/zones/\Q$zone\E/rrsets/([\w.-]+)/TXT/actions/(add|remove)_records$} => sub {
                my ($name, $what, $said) = @_;
                for my $text (map { $_->{value} // '' } @{$said->{records} // []}) {
                    my ($old) = grep { $made{hetzner}{$_}{said} eq "$name $text" } keys %{$made{hetzner}};
                    my $done = $what eq 'add' ? add('hetzner', 'TXT', $name, $text, "$name $text") : gone('hetzner', $old);
                    return (422, {error => {code => 'invalid_input', message => $not_this}}) unless $done;
                }
                (201, {action => {id => 0 + ++$number, command => "${what}_rrset_records", status => 'running', progress => 0}});
            }],
            [GET => qr{^/v1/actions/(\d+)$} => sub { (200, {action => {id => 0 + $_[0], status => 'success', progress => 100}}) }],
        ],
    },
    'api.vultr.com' => {
        token => $bearer,
        refusal => [401, {error => 'Invalid API token.', status => 401}],
        calls => [
            [GET => qr{^/v2/domains$} => sub { (200, {domains => [{domain => $zone, dns_sec => 'disabled'}], meta => meta(1)}) }],
            [POST => qr{^/v2/domains/\Q$zone\E/records$} => sub {
                my ($said) = @_;
                my $id = add('vultr', @$said{qw(type name data)}, $said) or return (400, {error => $not_this, status => 400});
                (201, {record => {%$said, id => $uuid->($id)}});
            }],
            [GET => qr{^/v2/domains/\Q$zone\E/records$} => sub {
                my $all = shown('vultr', 'id', $uuid);
                (200, {records => $all, meta => meta(scalar @$all)});
            }],
            [DELETE => qr{^/v2/domains/\Q$zone\E/records/([\w-]+)$} => sub {
                gone('vultr', $from_hex->($_[0])) ? 204 : (404, {error => 'Invalid record.', status => 404});
            }],
        ],
    },
    # What is listed is chosen by a header.
    'api.linode.com' => {
        token => $bearer,
        refusal => [401, {errors => [{reason => 'Invalid Token'}]}],
        calls => [
            [GET => qr{^/v4/domains$} => sub {
                my ($filter) = $_[2] =~ /^X-Filter: (.*)\r$/mi;
                my $wanted = eval { $json->decode($filter // '{}') } // {};
                page(($wanted->{domain} // $zone) eq $zone ? [{id => $zone_id, domain => $zone, type => 'master', status => 'active'}] : []);
            }],
            [POST => qr{^/v4/domains/$zone_id/records$} => sub {
                my ($said) = @_;
                my $id = add('linode', @$said{qw(type name target)}, $said) or return (400, {errors => [{reason => $not_this}]});
                (200, {%$said, id => $id});
            }],
            [GET => qr{^/v4/domains/$zone_id/records$} => sub { page(shown('linode', 'id', $count)) }],
            [DELETE => qr{^/v4/domains/$zone_id/records/(\d+)$} => sub {
                gone('linode', $_[0]) ? (200, {}) : (404, {errors => [{reason => 'Not found'}]});
            }],
        ],
    },
    # 3 is TXT. A zone is shown with all its records.
    'api.bunny.net' => {
        token => qr/^AccessKey: (\S+)\r$/mi,
        refusal => [401, {Message => 'Authorization has been denied for this request.'}],
        calls => [
            [GET => qr{^/dnszone$} => sub {
                my $one = {Id => $zone_id, Domain => $zone, Records => shown('bunny', 'Id', $count)};
                (200, {Items => [$one], CurrentPage => 1, TotalItems => 1, HasMoreItems => JSON::PP::false});
            }],
            [PUT => qr{^/dnszone/$zone_id/records$} => sub {
                my ($said) = @_;
                my $type = ($said->{Type} // '') eq '3' ? 'TXT' : '';
                my $id = add('bunny', $type, @$said{qw(Name Value)}, $said) or return (400, {ErrorKey => 'validation_error', Message => $not_this});
                (201, {%$said, Id => $id});
            }],
            [DELETE => qr{^/dnszone/$zone_id/records/(\d+)$} => sub {
                gone('bunny', $_[0]) ? 204 : (404, {ErrorKey => 'dnszone.record.not_found', Message => 'no such record'});
            }],
        ],
    },
);
for my $host (keys %api) {
    defined $token{$host} or die "dns-apis: no token for $host on standard input\n";
}

# Status and body. What is no call of an API is nobody's, whatever its token.
sub answer {
    my ($head, $body) = @_;
    my ($method, $target, $asked) = $head =~ m{^(\S+) (/[^? ]*)(?:\?(\S*))? } or return 400;
    my ($host) = $head =~ /^Host: (\S+)\r$/mi;
    my $api = $api{$host // ''} or return (404, {message => 'The lab has no such API'});
    my @here = grep { $target =~ $_->[1] } @{$api->{calls}} or return (404, {message => 'The lab has no such call'});
    my ($shown) = $head =~ $api->{token};
    return @{$api->{refusal}} if ($shown // '') ne $token{$host};
    my ($call) = grep { $_->[0] eq $method } @here or return (405, {message => 'The lab has no such call'});
    my %query = map { /^([^=]*)=(.*)/ ? ($1 => $2) : () } split /&/, $asked // '';
    my @taken = $target =~ $call->[1];
    @taken = () unless defined $1;
    my $said = eval { $json->decode($body) };
    return $call->[2]->(@taken, ref $said eq 'HASH' ? $said : {}, \%query, $head);
}

$SIG{PIPE} = 'IGNORE';
unlink $path;
my $listener = IO::Socket::UNIX->new(Local => $path, Listen => 20) or die "dns-apis: $path: $!\n";
while (1) {
    my $client = $listener->accept or next;
    # The web server before it sends a whole request at once, with its length.
    my ($head, $body) = ('', '');
    while (my $line = <$client>) {
        last if $line eq "\r\n";
        $head .= $line;
    }
    read($client, $body, $1) if $head =~ /^Content-Length: (\d+)\r$/mi;
    my ($status, $answer) = answer($head, $body);
    my $text = defined $answer ? $json->encode($answer) : '';
    my $type = $text eq '' ? '' : "Content-Type: application/json\r\n";
    print $client "HTTP/1.0 $status Lab\r\n${type}Content-Length: ${\length $text}\r\n\r\n$text";
    close $client;
}
