package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
)

// session is what a client and the server have agreed on.
type session struct {
	srv        *Server
	conn       net.Conn
	secure     bool
	noZeroes   bool
	structured bool
	metaFor    *Export // for which base:allocation was selected
	export     *Export
	caps       caps
}

// errLeft says that the client took its leave during the handshake.
var errLeft = errors.New("nbd: client aborted the handshake")

// negotiate does the handshake. It reads no byte beyond it, so that nothing that came in clear can be taken for something
// that came under TLS.
func (s *session) negotiate(ctx context.Context) error {
	var b [18]byte
	be.PutUint64(b[:], magicInit)
	be.PutUint64(b[8:], magicOption)
	be.PutUint16(b[16:], flagFixedNewstyle|flagNoZeroes)
	if _, err := s.conn.Write(b[:]); err != nil {
		return err
	}
	if _, err := io.ReadFull(s.conn, b[:4]); err != nil {
		return err
	}
	flags := be.Uint32(b[:])
	if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return fmt.Errorf("%w: client flags %#x", ErrProtocol, flags)
	}
	fixed := flags&flagFixedNewstyle != 0
	s.noZeroes = flags&flagNoZeroes != 0
	for range maxOptions {
		opt, data, err := s.readOption(fixed)
		if err == errAnswered {
			continue
		}
		if err != nil {
			return err
		}
		switch opt {
		case optExportName:
			return s.exportName(string(data))
		case optAbort:
			if err := s.reply(opt, repAck, nil); err != nil {
				return err
			}
			return errLeft
		case optStartTLS:
			err = s.startTLS(ctx, data)
		default:
			if s.srv.closing.Load() {
				err = s.refuse(opt, repErrShutdown, "the server is about to go")
				break
			}
			if s.srv.TLSRequired && !s.secure {
				err = s.refuse(opt, repErrTLSReqd, "TLS is required")
				break
			}
			var done bool
			if done, err = s.option(opt, data); done {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: %d options and no choice of an export", ErrProtocol, maxOptions)
}

// errAnswered says that an option was refused already, and its data dropped.
var errAnswered = errors.New("nbd: option is too long")

func (s *session) readOption(fixed bool) (uint32, []byte, error) {
	var b [16]byte
	if _, err := io.ReadFull(s.conn, b[:]); err != nil {
		return 0, nil, err
	}
	opt, n := be.Uint32(b[8:]), be.Uint32(b[12:])
	switch {
	case be.Uint64(b[:]) != magicOption:
		return 0, nil, fmt.Errorf("%w: option's magic is %#x", ErrProtocol, be.Uint64(b[:]))
	case !fixed && opt != optExportName:
		return 0, nil, fmt.Errorf("%w: option %d without fixed newstyle", ErrProtocol, opt)
	case opt == optExportName && n > maxString || n > 16*maxOption:
		return 0, nil, fmt.Errorf("%w: option %d of %d bytes", ErrProtocol, opt, n)
	case n > maxOption:
		if _, err := io.CopyN(io.Discard, s.conn, int64(n)); err != nil {
			return 0, nil, err
		}
		if err := s.refuse(opt, repErrTooBig, "option is too long"); err != nil {
			return 0, nil, err
		}
		return 0, nil, errAnswered
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(s.conn, data); err != nil {
		return 0, nil, unexpected(err)
	}
	return opt, data, nil
}

// option handles an option that is not special. done: the handshake is over.
func (s *session) option(opt uint32, data []byte) (done bool, err error) {
	switch opt {
	case optList:
		return false, s.list(data)
	case optInfo, optGo:
		return s.info(opt, data)
	case optStructuredReply:
		if len(data) != 0 {
			return false, s.refuse(opt, repErrInvalid, "this option has no data")
		}
		s.structured = true
		return false, s.reply(opt, repAck, nil)
	case optListMeta, optSetMeta:
		return false, s.metaContext(opt, data)
	}
	return false, s.refuse(opt, repErrUnsup, "unknown option")
}

// exportName chooses without a way to refuse: a client that cannot have what it wants is cut off.
func (s *session) exportName(name string) error {
	if s.srv.TLSRequired && !s.secure {
		return fmt.Errorf("%w: export %q asked for without TLS", ErrProtocol, name)
	}
	if s.srv.closing.Load() {
		return ErrShutdown
	}
	e := s.srv.lookup(name)
	if e == nil {
		return fmt.Errorf("%w: export %q asked for, which is not there", ErrProtocol, name)
	}
	if !s.srv.join(e) {
		return fmt.Errorf("nbd: export %q has all the connections that it may have", name)
	}
	s.choose(e)
	var b [134]byte
	be.PutUint64(b[:], uint64(s.caps.size))
	be.PutUint16(b[8:], s.caps.flags)
	n := len(b)
	if s.noZeroes {
		n = 10
	}
	_, err := s.conn.Write(b[:n])
	return err
}

func (s *session) choose(e *Export) {
	s.export = e
	s.caps = e.caps(s.structured)
}

func (s *session) startTLS(ctx context.Context, data []byte) error {
	switch {
	case len(data) != 0:
		return s.refuse(optStartTLS, repErrInvalid, "this option has no data")
	case s.secure:
		return s.refuse(optStartTLS, repErrInvalid, "TLS is there already")
	case s.srv.TLS == nil:
		return s.refuse(optStartTLS, repErrPolicy, "this server has no TLS")
	}
	if err := s.reply(optStartTLS, repAck, nil); err != nil {
		return err
	}
	c := tls.Server(s.conn, s.srv.TLS)
	if err := c.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("nbd: TLS: %w", err)
	}
	// What was agreed on in clear is void.
	s.conn, s.secure, s.structured, s.metaFor = c, true, false, nil
	return nil
}

func (s *session) list(data []byte) error {
	if len(data) != 0 {
		return s.refuse(optList, repErrInvalid, "this option has no data")
	}
	for i := range s.srv.Exports {
		e := &s.srv.Exports[i]
		b := be.AppendUint32(nil, uint32(len(e.Name)))
		b = append(append(b, e.Name...), e.Description...)
		if err := s.reply(optList, repServer, b); err != nil {
			return err
		}
	}
	return s.reply(optList, repAck, nil)
}

func (s *session) info(opt uint32, data []byte) (done bool, err error) {
	name, rest, ok := cutString(data)
	if !ok || len(rest) < 2 || len(rest) != 2+2*int(be.Uint16(rest)) {
		return false, s.refuse(opt, repErrInvalid, "lengths contradict each other")
	}
	e := s.srv.lookup(name)
	if e == nil {
		return false, s.refuse(opt, repErrUnknown, "no such export")
	}
	wants := [4]bool{infoExport: true}
	for rest = rest[2:]; len(rest) > 0; rest = rest[2:] {
		if t := be.Uint16(rest); int(t) < len(wants) {
			wants[t] = true
		}
	}
	c := e.caps(s.structured)
	var b []byte
	send := func(t uint16) {
		if err == nil {
			err = s.reply(opt, repInfo, append(be.AppendUint16(nil, t), b...))
		}
	}
	if wants[infoName] {
		b = []byte(e.Name)
		send(infoName)
	}
	if wants[infoDescription] && e.Description != "" {
		b = []byte(e.Description)
		send(infoDescription)
	}
	if wants[infoBlockSize] || c.minBlock > 1 {
		b = be.AppendUint32(nil, uint32(c.minBlock))
		b = be.AppendUint32(b, uint32(c.preferred))
		b = be.AppendUint32(b, uint32(c.maxPayload))
		send(infoBlockSize)
	}
	if err == nil && opt == optGo && c.minBlock > 1 && !wants[infoBlockSize] {
		return false, s.refuse(opt, repErrBlockSize, fmt.Sprintf("requests must be aligned to %d", c.minBlock))
	}
	b = be.AppendUint64(nil, uint64(c.size))
	b = be.AppendUint16(b, c.flags)
	if opt == optGo && err == nil {
		if !s.srv.join(e) {
			return false, s.refuse(opt, repErrPolicy, "this export has all the connections that it may have")
		}
		s.export, s.caps, done = e, c, true
	}
	send(infoExport)
	if err == nil {
		err = s.reply(opt, repAck, nil)
	}
	return done || err != nil, err
}

// metaContext lists or selects metadata contexts. There is one: base:allocation.
func (s *session) metaContext(opt uint32, data []byte) error {
	if opt == optSetMeta {
		s.metaFor = nil
	}
	if !s.structured {
		return s.refuse(opt, repErrInvalid, "structured replies come first")
	}
	name, rest, ok := cutString(data)
	if !ok || len(rest) < 4 {
		return s.refuse(opt, repErrInvalid, "lengths contradict each other")
	}
	n := be.Uint32(rest)
	rest = rest[4:]
	match := n == 0 && opt == optListMeta
	for range n { // each takes at least 4 bytes of rest, or ends the loop
		var q string
		if q, rest, ok = cutString(rest); !ok {
			return s.refuse(opt, repErrInvalid, "lengths contradict each other")
		}
		if !strings.Contains(q, ":") {
			return s.refuse(opt, repErrInvalid, "a context has a namespace and a colon")
		}
		match = match || q == allocationContext || q == "base:" && opt == optListMeta
	}
	if len(rest) != 0 {
		return s.refuse(opt, repErrInvalid, "lengths contradict each other")
	}
	e := s.srv.lookup(name)
	if e == nil {
		return s.refuse(opt, repErrUnknown, "no such export")
	}
	if match && e.caps(true).extenter != nil {
		id := uint32(0)
		if opt == optSetMeta {
			s.metaFor, id = e, allocationID
		}
		if err := s.reply(opt, repMeta, append(be.AppendUint32(nil, id), allocationContext...)); err != nil {
			return err
		}
	}
	return s.reply(opt, repAck, nil)
}

// cutString cuts a string with its length before it off b.
func cutString(b []byte) (string, []byte, bool) {
	if len(b) < 4 {
		return "", nil, false
	}
	n := be.Uint32(b)
	if b = b[4:]; n > maxString || uint64(n) > uint64(len(b)) {
		return "", nil, false
	}
	return string(b[:n]), b[n:], true
}

func (s *session) reply(opt, typ uint32, data []byte) error {
	b := make([]byte, 0, 20+len(data))
	b = be.AppendUint64(b, magicOptReply)
	b = be.AppendUint32(b, opt)
	b = be.AppendUint32(b, typ)
	b = be.AppendUint32(b, uint32(len(data)))
	_, err := s.conn.Write(append(b, data...))
	return err
}

func (s *session) refuse(opt, typ uint32, why string) error { return s.reply(opt, typ, []byte(why)) }
