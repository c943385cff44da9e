// Package wire holds what the lab's host side and its helper inside the guest say to each other: frames on a
// virtio-serial port, requests and replies, and the facts that the guest tells about itself.
//
// It uses the standard library only, because the helper is built from embedded sources in a module of its own.
package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// PortName is the virtio-serial port's name on both sides.
const PortName = "vmscope.lab"

// Listening is what an agent on a terminal says first, once it hears all that is sent.
const Listening = "\nvmscope.lab: the agent listens\n"

// MaxPayload bounds a frame, so that a damaged length cannot make a reader allocate at will.
const MaxPayload = 256 << 20

// Kind says what a frame carries.
type Kind uint32

// The frames. An exchange is Call, Result, Done; all three bear the same ID. A Call that comes again is answered from
// memory and not run again, which makes it safe to repeat after damage.
const (
	Call   Kind = iota + 1 // host to guest: a Request as JSON
	Result                 // guest to host: a Reply
	Done                   // host to guest: the reply arrived whole, forget it
	Cancel                 // host to guest: the host waits no more: kill the call's process, do not answer
)

// A Frame is one message on the port.
type Frame struct {
	Kind    Kind
	ID      uint64
	Payload []byte
}

const (
	magic      = "vsLb"
	headerSize = 4 + 4 + 8 + 4 + 4 // magic, kind, ID, payload length, CRC of the three
)

var table = crc32.MakeTable(crc32.Castagnoli)

// ErrDamaged reports bytes on the line that were no whole frame. The reader has moved past them.
var ErrDamaged = errors.New("wire: damaged frame")

// WriteFrame sends f. Callers serialise their writes.
func WriteFrame(w io.Writer, f Frame) error {
	if len(f.Payload) > MaxPayload {
		return fmt.Errorf("wire: payload of %d bytes is above the limit of %d", len(f.Payload), MaxPayload)
	}
	buf := make([]byte, 0, headerSize+len(f.Payload)+4)
	buf = append(buf, magic...)
	buf = binary.LittleEndian.AppendUint32(buf, uint32(f.Kind))
	buf = binary.LittleEndian.AppendUint64(buf, f.ID)
	buf = binary.LittleEndian.AppendUint32(buf, uint32(len(f.Payload)))
	buf = binary.LittleEndian.AppendUint32(buf, crc32.Checksum(buf[len(magic):], table))
	buf = append(buf, f.Payload...)
	buf = binary.LittleEndian.AppendUint32(buf, crc32.Checksum(f.Payload, table))
	_, err := w.Write(buf)
	return err
}

// ReadFrame reads the next whole frame and skips what lies before it: a peer that attaches in mid-stream sees the tail
// of an older frame first. ErrDamaged means that a frame began and its checksum did not hold; reading may go on.
func ReadFrame(r *bufio.Reader) (Frame, error) {
	for {
		head, err := r.Peek(headerSize)
		if err != nil {
			return Frame{}, err
		}
		crc := crc32.Checksum(head[len(magic):headerSize-4], table)
		if string(head[:len(magic)]) != magic || binary.LittleEndian.Uint32(head[headerSize-4:]) != crc {
			r.Discard(1)
			continue
		}
		f := Frame{Kind: Kind(binary.LittleEndian.Uint32(head[4:])), ID: binary.LittleEndian.Uint64(head[8:])}
		n := binary.LittleEndian.Uint32(head[16:])
		r.Discard(headerSize)
		if n > MaxPayload {
			return f, ErrDamaged
		}
		f.Payload = make([]byte, n)
		if _, err := io.ReadFull(r, f.Payload); err != nil {
			return f, err
		}
		var sum [4]byte
		if _, err := io.ReadFull(r, sum[:]); err != nil {
			return f, err
		}
		if binary.LittleEndian.Uint32(sum[:]) != crc32.Checksum(f.Payload, table) {
			return f, ErrDamaged
		}
		return f, nil
	}
}
