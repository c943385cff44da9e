package tap

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"vmscope/block"
	"vmscope/block/nbd"
	"vmscope/vm/qemu"
)

// Protocol is how a disk is served.
type Protocol string

// The protocols.
const (
	NBD       Protocol = "nbd"
	VhostUser Protocol = "vhost-user" // needs a Unix socket, and a guest whose memory is shared
	Xen       Protocol = "xen"        // as the back end of a Xen guest's disk: see ServeXen
)

// Service is a disk that is served with us in its path.
type Service struct {
	// Image is the path of a raw image or a block device, or the URI of an NBD export to forward to. No image format is
	// looked for: the guest could write one.
	Image    string
	ReadOnly bool
	Protocol Protocol // "" is NBD
	Export   string   // name of the NBD export
	Serial   string   // what a guest reads as the disk's ID by vhost-user
	// Cert and Key are PEM files with which the NBD server does TLS and insists on it; CA those of clients that may connect.
	Cert, Key, CA string

	// Domain and Device choose among the vbds of a Xen host whose target is Image: a name or number, and a name as xvda. ""
	// is any.
	Domain, Device string

	Socket string // path of the Unix socket; set by Serve and Connect
	// Dial: it is the front end that listens. Set by Connect.
	Dial bool
}

func (s *Service) forwards() bool { return strings.Contains(s.Image, "://") }

// open opens the disk for serving, and keeps QEMUs from writing to the image meanwhile.
func (s *Service) open(ctx context.Context) (servable, error) {
	switch {
	case s.Protocol == VhostUser && s.ReadOnly:
		return nil, fmt.Errorf("read-only by vhost-user: %w", errors.ErrUnsupported)
	case s.forwards():
		return nbd.Dial(ctx, s.Image, nbd.Options{})
	case s.Protocol == VhostUser, s.Protocol == Xen && !s.ReadOnly:
		d, err := block.OpenRaw(s.Image)
		if err != nil {
			return nil, err
		}
		return locked(ctx, d)
	}
	d, err := nbd.OpenFile(s.Image, s.ReadOnly)
	if err != nil {
		return nil, err
	}
	return locked(ctx, d)
}

// lockPatience is how long the locks of a receiver that was killed may take to go.
const lockPatience = 2 * time.Second

// locked locks a disk, or closes it.
func locked(ctx context.Context, d interface {
	servable
	Lock() error
}) (servable, error) {
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	for {
		err := d.Lock()
		if err == nil {
			return d, nil
		}
		if errors.Is(err, block.ErrLocked) {
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
				continue
			}
		}
		d.Close()
		return nil, err
	}
}

// tls gives the server's TLS; nil for none.
func (s *Service) tls() (*tls.Config, error) {
	if s.Cert == "" {
		return nil, nil
	}
	return nbd.ServerTLSFiles(s.Cert, s.Key, s.CA)
}

// Serve serves a disk at a listener (a *net.UnixListener or *net.TCPListener), which it takes over, and taps what is
// written to it. What is answered as durable is durable, whoever reads the tap or not.
//
// The disk is served by a process of its own. It outlives its reader: when the tap is closed, or its program dies, it goes
// on as long as a client is connected; see Serving. If the process is killed, its guard starts another at the same socket,
// and a client that connects again (QEMU's reconnect-delay, or reconnect of a chardev) goes on.
func Serve(ctx context.Context, ln net.Listener, s Service, o Options) (*Tap, error) {
	fl, ok := ln.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, fmt.Errorf("listener on %s: %w", ln.Addr().Network(), errors.ErrUnsupported)
	}
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
		s.Socket = ln.Addr().String()
	} else if s.Protocol == VhostUser {
		return nil, fmt.Errorf("vhost-user on %s: %w", ln.Addr().Network(), errors.ErrUnsupported)
	}
	f, err := fl.File()
	ln.Close()
	if err != nil {
		return nil, err
	}
	t, err := serve(ctx, f, s, o)
	if err != nil {
		f.Close()
		if s.Socket != "" {
			os.Remove(s.Socket)
		}
		return nil, fmt.Errorf("serve %q: %w", s.Image, err)
	}
	return t, nil
}

// Connect is Serve for a front end of vhost-user that listens itself (QEMU's -chardev socket,server=on,wait=off): after a
// receiver was killed the next one is there within milliseconds, where QEMU's reconnect waits for a second. It is tried
// until the front end is there.
func Connect(ctx context.Context, path string, s Service, o Options) (*Tap, error) {
	s.Protocol, s.Socket, s.Dial = VhostUser, path, true
	t, err := serve(ctx, nil, s, o)
	if err != nil {
		return nil, fmt.Errorf("serve %q: %w", s.Image, err)
	}
	return t, nil
}

// absolute makes the paths good for our other processes, which stand elsewhere.
func (s *Service) absolute() error {
	paths := []*string{&s.Socket, &s.Cert, &s.Key, &s.CA}
	if !s.forwards() {
		paths = append(paths, &s.Image)
	} else if u, err := url.Parse(s.Image); err == nil {
		q := u.Query()
		if p := q.Get("socket"); p != "" && !strings.HasPrefix(p, "@") && !filepath.IsAbs(p) {
			if p, err = filepath.Abs(p); err != nil {
				return err
			}
			q.Set("socket", p)
			u.RawQuery = q.Encode()
			s.Image = u.String()
		}
	}
	for _, p := range paths {
		if *p == "" || strings.HasPrefix(*p, "@") && p == &s.Socket {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	return nil
}

func serve(ctx context.Context, ln *os.File, s Service, o Options) (*Tap, error) {
	if err := s.absolute(); err != nil {
		return nil, err
	}
	if _, err := s.tls(); err != nil {
		return nil, err
	}
	d, err := s.open(ctx)
	if errors.Is(err, block.ErrLocked) {
		return nil, inUse(s.Image)
	}
	if err != nil {
		return nil, err
	}
	size := d.Size()
	d.Close()
	t, err := open(spec{Service: &s, Size: size}, o, nil, ln)
	if err != nil {
		return nil, err
	}
	t.disk = fmt.Sprintf("disk %q", s.Image)
	t.info = Disk{Name: s.Image, Format: "raw", File: s.Image, Size: size, ReadOnly: s.ReadOnly}
	if _, err = t.attachedAt(ctx); err == nil && s.forwards() {
		err = t.past.reach(ctx)
	}
	if err != nil {
		t.ln = nil // the caller's
		t.Close()
		return nil, err
	}
	return t, nil
}

// reach connects to the export that is forwarded to beside the receiver, which many a server does not allow.
func (p *past) reach(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, reachPatience)
	defer cancel()
	_, err := p.connect(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("a second connection is not answered: its server is to take several at once (qemu-nbd --shared=0): %w", err)
	}
	return err
}

// reachPatience is how long a server may take to answer.
const reachPatience = 10 * time.Second

// inUse says who has an image, if that can be told.
func inUse(image string) error {
	all, _ := qemu.List()
	for _, p := range all {
		if imageOf(p.PID, image) != "" {
			return fmt.Errorf("%w by %v, which would not see what others write: watch it as it runs, or end it first", ErrInUse, p)
		}
	}
	return fmt.Errorf("%w by another process, which would not see what others write: end that first", ErrInUse)
}

// Serving is the number of clients that a receiver goes on to serve after Close. It ends with the last of them.
func (t *Tap) Serving() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.clients
}
