// Package libvirt asks a daemon of libvirt for its domains, and has it pass commands on to their QEMUs: of libvirt's remote
// protocol the seven procedures that this takes (libvirt src/rpc/virnetprotocol.x, src/remote/remote_protocol.x and
// qemu_protocol.x; numbers and strings as of RFC 4506).
//
// A daemon may be another user's, and is believed nothing but what it says of its own domains: every answer is bounded in
// size and time. That, and passing files, is what github.com/digitalocean/go-libvirt lacks: a packet of 36 bytes makes it
// allocate 8 GiB, a shorter one panics, an answer that comes twice blocks it for ever.
package libvirt

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"vmscope/internal/binread"
)

// Errors of Dial and the calls. Each message says what to do.
var (
	// ErrNoDaemon says that no daemon listens there.
	ErrNoDaemon = errors.New("no daemon of libvirt answers")
	// ErrNoAnswer says that a daemon did not answer in time.
	ErrNoAnswer = errors.New("libvirt's daemon does not answer: it hangs, or is busy")
	// ErrRefused says that a daemon lets us not do this.
	ErrRefused = errors.New("libvirt does not let us")
)

// Error is what a daemon answered to a call that it refused.
type Error struct {
	Code    int32  // virErrorNumber of libvirt's include/libvirt/virterror.h
	Message string // for people; written by the daemon
}

func (e *Error) Error() string { return fmt.Sprintf("libvirt: %s (error %d)", e.Message, e.Code) }

// Is makes ErrRefused of those codes that say so.
func (e *Error) Is(target error) bool {
	switch e.Code {
	case codeDenied, codeAuthFailed, codeAuthCancelled, codeAccessDenied, codeAuthUnavailable:
		return target == ErrRefused
	}
	return false
}

// Of virErrorNumber.
const (
	codeDenied          = 29 // VIR_ERR_OPERATION_DENIED: the connection is one that can only read
	codeNoDomain        = 42
	codeAuthFailed      = 45
	codeAuthCancelled   = 79
	codeAccessDenied    = 88
	codeAuthUnavailable = 94
)

// Conn is a connection to a daemon. It is used by one goroutine.
type Conn struct {
	// Socket is where the daemon listens.
	Socket string
	// UID is the user that it runs as: that of who made the socket.
	UID int

	conn   *net.UnixConn
	r      *bufio.Reader
	serial uint32
}

// Dial connects to the daemon that listens at a socket, within ctx's deadline.
func Dial(ctx context.Context, socket string) (*Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	switch {
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("%w connect to %q: run as root, or as a member of the group libvirt (%w)", ErrRefused, socket, err)
	case err != nil && ctx.Err() == nil:
		return nil, fmt.Errorf("%w at %q (%w)", ErrNoDaemon, socket, err)
	case err != nil:
		return nil, fmt.Errorf("%q: %w", socket, ErrNoAnswer)
	}
	c := &Conn{Socket: socket, conn: conn.(*net.UnixConn), r: bufio.NewReader(conn)}
	if c.UID, err = maker(c.conn); err == nil {
		err = c.authenticate(ctx)
	}
	if err == nil {
		err = c.open(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("%q: %w", socket, err)
	}
	return c, nil
}

// maker is the user who made the listening end.
func maker(conn *net.UnixConn) (uid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(cerr, err); err != nil {
		return 0, err
	}
	return int(cred.Uid), nil
}

// Close hangs up.
func (c *Conn) Close() error { return c.conn.Close() }

// Of virnetprotocol.x.
const (
	typeCall      = 0
	typeReply     = 1
	typeCallFiles = 4
	statusOK      = 0

	// packetMax is VIR_NET_MESSAGE_MAX, of later versions, and the length before it.
	packetMax = 32<<20 + 4
	headerLen = 4 + 6*4 // the length, and virNetMessageHeader

	// skipMax is how many packets may come before an answer: events of others, which we ask for none.
	skipMax = 1000
)

// program is a program of the protocol; each is of version 1.
type program uint32

const (
	remote program = 0x20008086
	qemu   program = 0x20008087
)

// call calls a procedure, passing it a file if that is not nil, and gives what it returns. After an error that is no
// *Error the connection is of no more use.
func (c *Conn) call(ctx context.Context, in program, procedure uint32, args []byte, file *os.File) (*binread.Reader, error) {
	stop := c.until(ctx)
	defer stop()
	c.serial++
	err := c.send(in, procedure, args, file)
	var payload []byte
	var ok bool
	if err == nil {
		payload, ok, err = c.answer(in, procedure)
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		err = ErrNoAnswer
	}
	if err != nil {
		return nil, err
	}
	r := binread.NewBig("libvirt's answer", payload)
	if !ok {
		return nil, refusal(r)
	}
	return r, nil
}

// until makes the connection fail when ctx ends; the result undoes that.
func (c *Conn) until(ctx context.Context) (stop func() bool) {
	t, _ := ctx.Deadline() // zero: none
	c.conn.SetDeadline(t)
	return context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
}

// send writes a call. A file goes along with a byte of its own behind it, as virSocketSendFD has it.
func (c *Conn) send(in program, procedure uint32, args []byte, file *os.File) error {
	kind := uint32(typeCall)
	if file != nil {
		kind, args = typeCallFiles, append(binary.BigEndian.AppendUint32(nil, 1), args...)
	}
	var b []byte
	for _, v := range []uint32{uint32(headerLen + len(args)), uint32(in), 1, procedure, kind, c.serial, statusOK} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	if _, err := c.conn.Write(append(b, args...)); err != nil || file == nil {
		return err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var werr error
	err = raw.Control(func(fd uintptr) { _, _, werr = c.conn.WriteMsgUnix([]byte{0}, unix.UnixRights(int(fd)), nil) })
	return errors.Join(err, werr)
}

// answer reads up to the answer of the call under way; ok: it is what the procedure returns, else why it failed.
func (c *Conn) answer(in program, procedure uint32) (payload []byte, ok bool, err error) {
	for range skipMax {
		var h [headerLen]byte
		if _, err := io.ReadFull(c.r, h[:]); err != nil {
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				err = errors.New("libvirt's daemon closed the connection: it may have too many clients")
			}
			return nil, false, err
		}
		f := binread.NewBig("packet", h[:])
		length, from, _, proc, kind, serial, status := f.U32(), f.U32(), f.U32(), f.U32(), f.U32(), f.U32(), f.U32()
		if length < headerLen || length > packetMax {
			return nil, false, fmt.Errorf("this is no daemon of libvirt: it sent a packet of %d bytes", length)
		}
		left := int64(length - headerLen)
		if kind == typeReply && serial == c.serial && program(from) == in && proc == procedure {
			var b bytes.Buffer // grows with what comes, not with what is said
			_, err := io.CopyN(&b, c.r, left)
			return b.Bytes(), status == statusOK, err
		}
		if _, err := io.CopyN(io.Discard, c.r, left); err != nil {
			return nil, false, err
		}
	}
	return nil, false, fmt.Errorf("libvirt's daemon sent %d packets and no answer", skipMax)
}

// refusal decodes a virNetMessageError.
func refusal(r *binread.Reader) error {
	e := &Error{Code: int32(r.U32())}
	r.Skip(4) // the part of libvirt
	if r.U32() != 0 {
		e.Message = text(r)
	}
	if err := r.Err(); err != nil {
		return err
	}
	const most = 500
	e.Message = e.Message[:min(len(e.Message), most)]
	return e
}

// text reads a string: its length, its bytes, zeros up to a multiple of 4.
func text(r *binread.Reader) string {
	s := string(r.Bytes(int(r.U32())))
	r.Align(4)
	return s
}

// appendText is the counterpart of text.
func appendText(b []byte, s string) []byte {
	b = append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
	return append(b, make([]byte, -len(s)&3)...)
}
