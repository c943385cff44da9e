package tap

import "errors"

// Why a tap cannot be had, or ended.
var (
	// ErrInUse says that the disk is tapped already, or that another job of QEMU has it.
	ErrInUse = errors.New("the disk is in use")
	// ErrDetached says that somebody asked for the disk: Detach, or a management tool that cancelled the job.
	ErrDetached = errors.New("detached on request")
	// ErrUnplugged says that the machine does not have the disk any more, or another medium in it.
	ErrUnplugged = errors.New("the disk was unplugged")
	// ErrGuestEnded says that the machine has ended.
	ErrGuestEnded = errors.New("the guest has ended")

	errCrashing = errors.New("the receiver ends again and again")
)
