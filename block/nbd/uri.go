package nbd

import (
	"fmt"
	"net"
	"net/url"
	"strings"
)

// Address is where an export is: what an NBD URI says.
type Address struct {
	Network string // "unix" or "tcp"
	Addr    string // the socket's path, or host:port
	Export  string
	TLS     bool   // the URI asks for it
	Host    string // whose certificate it is; "" for a Unix socket
}

// ParseURI understands nbd://HOST[:PORT]/EXPORT and nbd+unix:///EXPORT?socket=PATH, and nbds for TLS (doc/uri.md of the
// protocol's repository).
func ParseURI(uri string) (Address, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return Address{}, fmt.Errorf("nbd: %w", err)
	}
	a := Address{Export: strings.TrimPrefix(u.Path, "/")}
	switch u.Scheme {
	case "nbd", "nbd+unix":
	case "nbds", "nbds+unix":
		a.TLS = true
	default:
		return Address{}, fmt.Errorf("nbd: %q is no NBD URI: its scheme is not nbd, nbds, nbd+unix or nbds+unix", uri)
	}
	if len(a.Export) > maxString {
		return Address{}, fmt.Errorf("nbd: the export's name has more than %d bytes", maxString)
	}
	if strings.HasSuffix(u.Scheme, "+unix") {
		a.Network, a.Addr = "unix", u.Query().Get("socket")
		if a.Addr == "" {
			return Address{}, fmt.Errorf("nbd: %q lacks ?socket=PATH", uri)
		}
		if u.Host != "" {
			return Address{}, fmt.Errorf("nbd: %q names a host and a Unix socket", uri)
		}
		return a, nil
	}
	if u.Hostname() == "" {
		return Address{}, fmt.Errorf("nbd: %q lacks a host", uri)
	}
	port := u.Port()
	if port == "" {
		port = defaultPort
	}
	a.Network, a.Host, a.Addr = "tcp", u.Hostname(), net.JoinHostPort(u.Hostname(), port)
	return a, nil
}

// URI is the address in one line.
func (a Address) URI() string {
	u := url.URL{Scheme: "nbd", Path: "/" + a.Export}
	if a.TLS {
		u.Scheme = "nbds"
	}
	if a.Network == "unix" {
		u.Scheme += "+unix"
		u.RawQuery = url.Values{"socket": {a.Addr}}.Encode()
		s := u.String()
		if !strings.Contains(s, "://") { // no host: net/url leaves the slashes out
			s = strings.Replace(s, ":", "://", 1)
		}
		return s
	}
	u.Host = a.Addr
	return u.String()
}
