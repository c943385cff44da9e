package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"time"
)

// Options of a client. The zero value is a client without TLS that waits for ever.
type Options struct {
	// TLS is what TLS is done with. Where it is set, or the URI asks for TLS, a server without it is refused.
	TLS *tls.Config
	// Timeout bounds each request, from its call to its reply; 0: no bound but the context's. When it passes, the request
	// fails with os.ErrDeadlineExceeded.
	Timeout time.Duration
}

// Info is what a server says of an export.
type Info struct {
	Name        string
	Description string
	Size        int64
	ReadOnly    bool
	// MinBlock is the alignment that requests must have. ReadAt takes any, by reading more.
	MinBlock, PreferredBlock, MaxPayload int
	// What the server offers.
	Flush, FUA, Trim, WriteZeroes, FastZero, Cache, MultiConn, Structured, Extents bool

	flags uint16
}

// Dial connects to the export that a URI names (see ParseURI). ctx bounds the handshake only.
func Dial(ctx context.Context, uri string, o Options) (*Client, error) {
	a, err := ParseURI(uri)
	if err != nil {
		return nil, err
	}
	return DialAddress(ctx, a, o)
}

// DialAddress connects to an export.
func DialAddress(ctx context.Context, a Address, o Options) (*Client, error) {
	conn, err := dial(ctx, &a, &o)
	if err != nil {
		return nil, err
	}
	return NewClient(ctx, conn, a.Export, o)
}

func dial(ctx context.Context, a *Address, o *Options) (net.Conn, error) {
	if a.TLS && o.TLS == nil {
		o.TLS = &tls.Config{}
	}
	if o.TLS != nil && o.TLS.ServerName == "" && !o.TLS.InsecureSkipVerify {
		o.TLS = o.TLS.Clone()
		if o.TLS.ServerName = a.Host; a.Host == "" {
			o.TLS.ServerName = "localhost"
		}
	}
	conn, err := new(net.Dialer).DialContext(ctx, a.Network, a.Addr)
	if err != nil {
		return nil, fmt.Errorf("nbd: %w", err)
	}
	return conn, nil
}

// NewClient does the handshake on a connection, which it owns from then on.
func NewClient(ctx context.Context, conn net.Conn, export string, o Options) (*Client, error) {
	h := &hail{conn: conn}
	if err := h.bounded(ctx, func() error { return h.enter(ctx, export, o.TLS) }); err != nil {
		return nil, err
	}
	return startClient(h, o), nil
}

// List asks a server which exports it has, and what they are like. It gives what it got beside the error.
func List(ctx context.Context, uri string, o Options) ([]Info, error) {
	a, err := ParseURI(uri)
	if err != nil {
		return nil, err
	}
	conn, err := dial(ctx, &a, &o)
	if err != nil {
		return nil, err
	}
	h := &hail{conn: conn}
	defer func() { h.conn.Close() }()
	var out []Info
	err = h.bounded(ctx, func() (err error) {
		if err := h.greet(ctx, o.TLS); err != nil {
			return err
		}
		if out, err = h.list(); err != nil {
			return err
		}
		for i := range out {
			if err := h.ask(optInfo, &out[i]); err != nil && !errors.As(err, new(*optionError)) {
				return err
			}
		}
		return h.option(optAbort, nil)
	})
	return out, err
}

// hail is the client's side of a handshake.
type hail struct {
	conn     net.Conn
	noZeroes bool
	info     Info
	metaID   uint32
}

// bounded runs f, and breaks the connection off when ctx ends. With an error the connection is closed.
func (h *hail) bounded(ctx context.Context, f func() error) error {
	raw := h.conn
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(longAgo) })
	err := f()
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err == nil {
		return nil
	}
	h.conn.Close()
	if ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return fmt.Errorf("nbd: handshake: %w", err)
}

// enter goes all the way to the transmission phase.
func (h *hail) enter(ctx context.Context, export string, conf *tls.Config) error {
	if len(export) > maxString {
		return fmt.Errorf("the export's name has more than %d bytes", maxString)
	}
	if err := h.greet(ctx, conf); err != nil {
		return err
	}
	h.info = Info{Name: export}
	var refused *optionError
	switch err := h.option(optStructuredReply, nil); {
	case err == nil:
		h.info.Structured = true
		if err := h.selectMeta(export); err != nil && !errors.As(err, &refused) {
			return err
		}
	case !errors.As(err, &refused):
		return err
	}
	err := h.ask(optGo, &h.info)
	if errors.As(err, &refused) && refused.typ == repErrUnsup {
		return h.exportName(export)
	}
	return err
}

// greet does what comes before options, and TLS.
func (h *hail) greet(ctx context.Context, conf *tls.Config) error {
	var b [18]byte
	if _, err := io.ReadFull(h.conn, b[:]); err != nil {
		return err
	}
	if m := be.Uint64(b[:]); m != magicInit {
		return fmt.Errorf("%w: this is no NBD server: its magic is %#x", ErrProtocol, m)
	}
	flags := uint32(be.Uint16(b[16:]))
	if be.Uint64(b[8:]) != magicOption || flags&flagFixedNewstyle == 0 {
		return fmt.Errorf("%w: the server speaks only an old form of the protocol", errors.ErrUnsupported)
	}
	flags &= flagFixedNewstyle | flagNoZeroes
	h.noZeroes = flags&flagNoZeroes != 0
	if _, err := h.conn.Write(be.AppendUint32(nil, flags)); err != nil {
		return err
	}
	if conf == nil {
		return nil
	}
	if err := h.option(optStartTLS, nil); err != nil {
		return err
	}
	c := tls.Client(h.conn, conf)
	h.conn = c
	return c.HandshakeContext(ctx)
}

// optionError is a server's refusal of an option.
type optionError struct {
	opt, typ uint32
	msg      string
}

var repNames = map[uint32]string{repErrUnsup: "not supported", repErrPolicy: "forbidden", repErrInvalid: "invalid",
	repErrPlatform: "not on this platform", repErrTLSReqd: "TLS is required", repErrUnknown: "no such export",
	repErrShutdown: "the server is about to go", repErrBlockSize: "block size must be asked for", repErrTooBig: "too big"}

func (e *optionError) Error() string {
	name := repNames[e.typ]
	if name == "" {
		name = fmt.Sprintf("error %#x", e.typ)
	}
	if e.msg != "" {
		name += fmt.Sprintf(" (%q)", e.msg)
	}
	return fmt.Sprintf("option %d: %s", e.opt, name)
}

// Unwrap sorts a refusal.
func (e *optionError) Unwrap() error {
	switch e.typ {
	case repErrUnsup, repErrPlatform:
		return errors.ErrUnsupported
	case repErrShutdown:
		return ErrShutdown
	}
	return nil
}

// option sends an option that is answered by yes or no.
func (h *hail) option(opt uint32, data []byte) error {
	return h.options(opt, data, func(uint32, []byte) error {
		return fmt.Errorf("%w: option %d was not answered by yes or no", ErrProtocol, opt)
	})
}

// maxReplies bounds the replies to one option: exports of a list, mostly.
const maxReplies = 10000

// options sends an option, and calls f for each reply until the last, which is yes or no.
func (h *hail) options(opt uint32, data []byte, f func(typ uint32, data []byte) error) error {
	b := be.AppendUint64(nil, magicOption)
	b = be.AppendUint32(b, opt)
	b = be.AppendUint32(b, uint32(len(data)))
	if _, err := h.conn.Write(append(b, data...)); err != nil {
		return err
	}
	for range maxReplies {
		var b [20]byte
		if _, err := io.ReadFull(h.conn, b[:]); err != nil {
			return err
		}
		typ, n := be.Uint32(b[12:]), be.Uint32(b[16:])
		if be.Uint64(b[:]) != magicOptReply || be.Uint32(b[8:]) != opt || n > maxOption {
			return fmt.Errorf("%w: reply to option %d: %x", ErrProtocol, opt, b)
		}
		data := make([]byte, n)
		if _, err := io.ReadFull(h.conn, data); err != nil {
			return err
		}
		switch {
		case typ == repAck:
			return nil
		case typ >= repErr:
			return &optionError{opt, typ, string(data)}
		}
		if err := f(typ, data); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: more than %d replies to option %d", ErrProtocol, maxReplies, opt)
}

func (h *hail) selectMeta(export string) error {
	b := be.AppendUint32(nil, uint32(len(export)))
	b = append(b, export...)
	b = be.AppendUint32(b, 1)
	b = be.AppendUint32(b, uint32(len(allocationContext)))
	b = append(b, allocationContext...)
	return h.options(optSetMeta, b, func(typ uint32, data []byte) error {
		if typ != repMeta || len(data) < 4 || string(data[4:]) != allocationContext {
			return fmt.Errorf("%w: selected a context that was not asked for: %d, %q", ErrProtocol, typ, data)
		}
		h.metaID, h.info.Extents = be.Uint32(data), true
		return nil
	})
}

func (h *hail) list() ([]Info, error) {
	var out []Info
	err := h.options(optList, nil, func(typ uint32, data []byte) error {
		name, rest, ok := cutString(data)
		if typ != repServer || !ok {
			return fmt.Errorf("%w: in a list of exports: %d, %q", ErrProtocol, typ, data)
		}
		out = append(out, Info{Name: name, Description: string(rest)})
		return nil
	})
	return out, err
}

// ask sends optInfo or optGo, and completes in.
func (h *hail) ask(opt uint32, in *Info) error {
	b := be.AppendUint32(nil, uint32(len(in.Name)))
	b = append(b, in.Name...)
	b = be.AppendUint16(b, 2)
	b = be.AppendUint16(b, infoDescription)
	b = be.AppendUint16(b, infoBlockSize)
	known := false
	*in = Info{Name: in.Name, Description: in.Description, Structured: in.Structured, Extents: in.Extents}
	err := h.options(opt, b, func(typ uint32, data []byte) error {
		if typ != repInfo || len(data) < 2 {
			return fmt.Errorf("%w: not information: %d, %q", ErrProtocol, typ, data)
		}
		t, data := be.Uint16(data), data[2:]
		switch {
		case t == infoExport && len(data) == 10:
			known = true
			return in.setFlags(be.Uint64(data), be.Uint16(data[8:]))
		case t == infoDescription && len(data) <= maxString:
			in.Description = string(data)
		case t == infoBlockSize && len(data) == 12:
			return in.setBlocks(be.Uint32(data), be.Uint32(data[4:]), be.Uint32(data[8:]))
		case t == infoExport || t == infoBlockSize:
			return fmt.Errorf("%w: information %d of %d bytes", ErrProtocol, t, len(data))
		}
		return nil
	})
	if err == nil && !known {
		err = fmt.Errorf("%w: the server does not tell the export's size", ErrProtocol)
	}
	in.defaults()
	return err
}

// exportName chooses an export the old way.
func (h *hail) exportName(export string) error {
	b := be.AppendUint64(nil, magicOption)
	b = be.AppendUint32(b, optExportName)
	b = be.AppendUint32(b, uint32(len(export)))
	if _, err := h.conn.Write(append(b, export...)); err != nil {
		return err
	}
	var r [134]byte
	n := len(r)
	if h.noZeroes {
		n = 10
	}
	if _, err := io.ReadFull(h.conn, r[:n]); err != nil {
		return fmt.Errorf("export %q: %w", export, err)
	}
	h.info.defaults()
	return h.info.setFlags(be.Uint64(r[:]), be.Uint16(r[8:]))
}

func (in *Info) setFlags(size uint64, flags uint16) error {
	if size > math.MaxInt64 {
		return fmt.Errorf("%w: the export's size is %#x", ErrProtocol, size)
	}
	in.Size, in.flags = int64(size), flags
	has := func(bit uint16) bool { return flags&bit != 0 }
	in.ReadOnly = has(tfReadOnly)
	in.Flush, in.FUA, in.Trim = has(tfFlush), has(tfFUA), has(tfTrim)
	in.WriteZeroes, in.FastZero = has(tfWriteZeroes), has(tfFastZero)
	in.Cache, in.MultiConn = has(tfCache), has(tfMultiConn)
	return nil
}

// setBlocks takes the server's constraints, as far as they can be.
func (in *Info) setBlocks(least, preferred, most uint32) error {
	if least == 0 || least&(least-1) != 0 || least > 64<<10 || preferred < least || most < least {
		return fmt.Errorf("%w: block sizes %d, %d, %d", ErrProtocol, least, preferred, most)
	}
	in.MinBlock, in.PreferredBlock = int(least), int(min(preferred, defaultPayload))
	in.MaxPayload = int(min(most, defaultPayload)) &^ int(least-1)
	return nil
}

func (in *Info) defaults() {
	if in.MinBlock == 0 {
		in.MinBlock, in.PreferredBlock, in.MaxPayload = 1, defaultPreferred, defaultPayload
	}
}
