package libvirt

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"vmscope/internal/binread"
)

// Of remote_protocol.x and qemu_protocol.x.
const (
	procOpen         = 1
	procLookupID     = 22
	procLookupName   = 23
	procLookupUUID   = 24
	procAuthList     = 66
	procAuthPolkit   = 70
	procListDomains  = 273
	procCommand      = 1 // of QEMU's program
	procCommandFiles = 7 // from libvirt 8.2 on

	authNone   = 0
	authPolkit = 2

	// domainsMax is REMOTE_DOMAIN_LIST_MAX, authMax REMOTE_AUTH_TYPE_LIST_MAX.
	domainsMax = 16384
	authMax    = 20
)

// Domain is a machine that a daemon has.
type Domain struct {
	Name string // chosen by who defined it
	UUID [16]byte
	ID   int32 // counts up with each start; -1: it does not run
}

// authenticate says who we are, where the daemon does not know that by the socket.
func (c *Conn) authenticate(ctx context.Context) error {
	r, err := c.call(ctx, remote, procAuthList, nil, nil)
	if err != nil {
		return err
	}
	ways, err := authWays(r)
	if err != nil || len(ways) == 0 {
		return err
	}
	for _, w := range ways {
		switch w {
		case authNone:
			return nil
		case authPolkit:
			_, err := c.call(ctx, remote, procAuthPolkit, nil, nil)
			if errors.Is(err, ErrRefused) {
				err = fmt.Errorf("run as root, or as a member of the group libvirt: %w", err)
			}
			return err
		}
	}
	return fmt.Errorf("%w in: it asks for a password (SASL); run as root, or as a member of the group libvirt", ErrRefused)
}

// authWays decodes a remote_auth_list_ret.
func authWays(r *binread.Reader) (ways []uint32, err error) {
	n := r.U32()
	for range min(n, authMax) {
		ways = append(ways, r.U32())
	}
	return ways, r.Err()
}

// open chooses the driver of QEMU: a daemon has one, of the whole host or of its user.
func (c *Conn) open(ctx context.Context) error {
	uris := []string{"qemu:///system", "qemu:///session"}
	if c.UID != 0 {
		uris[0], uris[1] = uris[1], uris[0]
	}
	var errs error
	for _, uri := range uris {
		args := binary.BigEndian.AppendUint32(nil, 1) // there is a name
		_, err := c.call(ctx, remote, procOpen, binary.BigEndian.AppendUint32(appendText(args, uri), 0), nil)
		if err == nil {
			return nil
		}
		if errs == nil {
			errs = err // the other is a guess
		}
		if refused := (*Error)(nil); !errors.As(err, &refused) {
			return err
		}
	}
	return errs
}

// Domains lists all domains, those that do not run too.
func (c *Conn) Domains(ctx context.Context) ([]Domain, error) {
	args := binary.BigEndian.AppendUint32(nil, 1)                                               // the list, not only its length
	r, err := c.call(ctx, remote, procListDomains, binary.BigEndian.AppendUint32(args, 0), nil) // 0: of all kinds
	if err != nil {
		return nil, err
	}
	return domains(r)
}

// domains decodes a remote_connect_list_all_domains_ret.
func domains(r *binread.Reader) (out []Domain, err error) {
	n := r.U32()
	if n > domainsMax {
		return nil, fmt.Errorf("libvirt's daemon tells of %d domains", n)
	}
	for range n {
		d := domain(r)
		if r.Err() != nil {
			break
		}
		out = append(out, d)
	}
	return out, r.Err()
}

// Lookup finds a domain by its name, else its UUID, else its number. ok tells whether there is one.
func (c *Conn) Lookup(ctx context.Context, name string) (d Domain, ok bool, err error) {
	type question struct {
		procedure uint32
		args      []byte
	}
	ask := []question{{procLookupName, appendText(nil, name)}}
	if uuid, err := hex.DecodeString(strings.ReplaceAll(name, "-", "")); err == nil && len(uuid) == 16 {
		ask = append(ask, question{procLookupUUID, uuid})
	}
	if id, err := strconv.ParseInt(name, 10, 32); err == nil && id >= 0 {
		ask = append(ask, question{procLookupID, binary.BigEndian.AppendUint32(nil, uint32(id))})
	}
	for _, q := range ask {
		r, err := c.call(ctx, remote, q.procedure, q.args, nil)
		var e *Error
		if errors.As(err, &e) && e.Code == codeNoDomain {
			continue
		}
		if err != nil {
			return Domain{}, false, err
		}
		d := domain(r)
		return d, r.Err() == nil, r.Err()
	}
	return Domain{}, false, nil
}

// Command has a domain's QEMU execute a line of QMP, with a file passed along if that is not nil, and gives the line that it
// answered. libvirt marks the domain as tainted by that ("custom-monitor"), which changes nothing in it.
func (c *Conn) Command(ctx context.Context, d Domain, line string, file *os.File) (string, error) {
	args := appendText(nil, d.Name)
	args = append(args, d.UUID[:]...)
	args = binary.BigEndian.AppendUint32(args, uint32(d.ID))
	args = binary.BigEndian.AppendUint32(appendText(args, line), 0)
	procedure := uint32(procCommand)
	if file != nil {
		procedure = procCommandFiles
	}
	r, err := c.call(ctx, qemu, procedure, args, file)
	var e *Error
	if errors.As(err, &e) && e.Code == codeDenied {
		err = fmt.Errorf("%q can only be read from: give the socket without \"-ro\": %w", c.Socket, err)
	}
	if err != nil {
		return "", err
	}
	s := text(r)
	return s, r.Err()
}

// domain decodes a remote_nonnull_domain.
func domain(r *binread.Reader) Domain {
	d := Domain{Name: text(r)}
	copy(d.UUID[:], r.Bytes(len(d.UUID)))
	d.ID = int32(r.U32())
	return d
}
