// SPDX-License-Identifier: BSD-3-Clause OR GPL-2.0-only
/*
 * Makes the kernel's estimate of what a link's message takes as it was before the GUIDs of VFs were counted in it (net/core/rtnetlink.c,
 * rtnl_vfinfo_size: "Allocate vfinfo size for VF GUIDs when supported"): each VF's two take 40 bytes. netdevsim's VFs have no GUIDs, so
 * what does not fit is as much of the rest. While this module is loaded, a dump of links with many VFs ends with EMSGSIZE, as it does with
 * InfiniBand VFs on such kernels.
 */
#include <linux/device.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/netdevice.h>
#include <linux/rtnetlink.h>

#define GUIDS 40

static int entered(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	const struct net_device *dev = (const void *)regs_get_kernel_argument(regs, 0);
	u32 filter = (u32)regs_get_kernel_argument(regs, 1);
	int *vfs = (int *)instance->data;

	*vfs = dev->dev.parent && (filter & RTEXT_FILTER_VF) ? dev_num_vf(dev->dev.parent) : 0;
	return 0;
}

static int left(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	int *vfs = (int *)instance->data;

	regs_set_return_value(regs, regs_return_value(regs) - GUIDS * *vfs);
	return 0;
}

static struct kretprobe probe = {
	.kp.symbol_name = "if_nlmsg_size",
	.entry_handler = entered,
	.handler = left,
	.data_size = sizeof(int),
};

static int __init small_estimate_init(void)
{
	return register_kretprobe(&probe);
}

static void __exit small_estimate_exit(void)
{
	unregister_kretprobe(&probe);
}

module_init(small_estimate_init);
module_exit(small_estimate_exit);
MODULE_DESCRIPTION("An estimate of links' messages that forgets the GUIDs of VFs");
MODULE_LICENSE("Dual BSD/GPL");
