/*
 * What ringspan needs of DPDK and bindgen cannot give: functions that are `static inline` in DPDK's headers, and macros.
 *
 * Everything per packet works on bursts, so that a call costs nothing that can be measured. See the DPDK programmer's
 * guide, chapters "Poll Mode Driver", "Mbuf Library" and "Mempool Library".
 */
#ifndef RINGSPAN_DPDK_SHIM_H
#define RINGSPAN_DPDK_SHIM_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <rte_config.h>
#include <rte_build_config.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_eth_bond.h>
#include <rte_eth_bond_8023ad.h>
#include <rte_ethdev.h>
#include <rte_eth_ring.h>
#include <rte_ether.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_malloc.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_meter.h>
#include <rte_ring.h>
#include <rte_version.h>

#include "flow.h"
#include "reference.h"

/* Field offsets of rte_mbuf. They moved between DPDK 22.11 and 24.11, so they come from the headers at build time. */
enum shim_mbuf_layout {
	SHIM_MBUF_SIZE = sizeof(struct rte_mbuf),
	SHIM_MBUF_BUF_ADDR = offsetof(struct rte_mbuf, buf_addr),
	SHIM_MBUF_DATA_OFF = offsetof(struct rte_mbuf, data_off),
	SHIM_MBUF_REFCNT = offsetof(struct rte_mbuf, refcnt),
	SHIM_MBUF_NB_SEGS = offsetof(struct rte_mbuf, nb_segs),
	SHIM_MBUF_PORT = offsetof(struct rte_mbuf, port),
	SHIM_MBUF_OL_FLAGS = offsetof(struct rte_mbuf, ol_flags),
	SHIM_MBUF_PACKET_TYPE = offsetof(struct rte_mbuf, packet_type),
	SHIM_MBUF_PKT_LEN = offsetof(struct rte_mbuf, pkt_len),
	SHIM_MBUF_DATA_LEN = offsetof(struct rte_mbuf, data_len),
	SHIM_MBUF_VLAN_TCI = offsetof(struct rte_mbuf, vlan_tci),
	SHIM_MBUF_BUF_LEN = offsetof(struct rte_mbuf, buf_len),
	SHIM_MBUF_POOL = offsetof(struct rte_mbuf, pool),
	SHIM_MBUF_NEXT = offsetof(struct rte_mbuf, next),
	SHIM_MBUF_TX_OFFLOAD = offsetof(struct rte_mbuf, tx_offload),
};

/* Where the parts of rte_mbuf.tx_offload begin, and how wide the narrow ones are, in bits. */
enum shim_mbuf_tx_offload {
	SHIM_MBUF_L2_LEN_BITS = RTE_MBUF_L2_LEN_BITS,
	SHIM_MBUF_L3_LEN_BITS = RTE_MBUF_L3_LEN_BITS,
	SHIM_MBUF_L4_LEN_BITS = RTE_MBUF_L4_LEN_BITS,
	SHIM_MBUF_L2_LEN_OFS = RTE_MBUF_L2_LEN_OFS,
	SHIM_MBUF_L3_LEN_OFS = RTE_MBUF_L3_LEN_OFS,
	SHIM_MBUF_L4_LEN_OFS = RTE_MBUF_L4_LEN_OFS,
	SHIM_MBUF_TSO_SEGSZ_OFS = RTE_MBUF_TSO_SEGSZ_OFS,
};

/* Limits and constants that are macros in DPDK. */
enum shim_constants {
	SHIM_MAX_ETHPORTS = RTE_MAX_ETHPORTS,
	SHIM_MAX_LCORE = RTE_MAX_LCORE,
	SHIM_PKTMBUF_HEADROOM = RTE_PKTMBUF_HEADROOM,
	SHIM_MEMPOOL_CACHE_MAX = RTE_MEMPOOL_CACHE_MAX_SIZE,
	SHIM_SOCKET_ID_ANY = SOCKET_ID_ANY,
	SHIM_ETHER_HDR_LEN = RTE_ETHER_HDR_LEN,
	SHIM_DPDK_VERSION = RTE_VERSION,
	SHIM_RING_SP_ENQ = RING_F_SP_ENQ,
	SHIM_RING_SC_DEQ = RING_F_SC_DEQ,
	SHIM_BOND_ACTIVE_BACKUP = BONDING_MODE_ACTIVE_BACKUP,
	SHIM_BOND_BALANCE = BONDING_MODE_BALANCE,
	SHIM_BOND_8023AD = BONDING_MODE_8023AD,
	SHIM_BOND_BY_LAYER34 = BALANCE_XMIT_POLICY_LAYER34,
};

static const uint64_t SHIM_RX_OFFLOAD_SCATTER = RTE_ETH_RX_OFFLOAD_SCATTER;
static const uint64_t SHIM_RX_OFFLOAD_RSS_HASH = RTE_ETH_RX_OFFLOAD_RSS_HASH;
static const uint64_t SHIM_RX_OFFLOAD_UDP_CKSUM = RTE_ETH_RX_OFFLOAD_UDP_CKSUM;
static const uint64_t SHIM_RX_OFFLOAD_TCP_CKSUM = RTE_ETH_RX_OFFLOAD_TCP_CKSUM;
static const uint64_t SHIM_TX_OFFLOAD_MULTI_SEGS = RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
static const uint64_t SHIM_TX_OFFLOAD_IPV4_CKSUM = RTE_ETH_TX_OFFLOAD_IPV4_CKSUM;
static const uint64_t SHIM_TX_OFFLOAD_UDP_CKSUM = RTE_ETH_TX_OFFLOAD_UDP_CKSUM;
static const uint64_t SHIM_TX_OFFLOAD_TCP_CKSUM = RTE_ETH_TX_OFFLOAD_TCP_CKSUM;
static const uint64_t SHIM_TX_OFFLOAD_TCP_TSO = RTE_ETH_TX_OFFLOAD_TCP_TSO;

/* Flags of rte_mbuf.ol_flags. */
static const uint64_t SHIM_MBUF_RX_L4_CKSUM_MASK = RTE_MBUF_F_RX_L4_CKSUM_MASK;
static const uint64_t SHIM_MBUF_RX_L4_CKSUM_GOOD = RTE_MBUF_F_RX_L4_CKSUM_GOOD;
/* The bytes are in memory that is not the pool's. */
static const uint64_t SHIM_MBUF_EXTERNAL = RTE_MBUF_F_EXTERNAL;
static const uint64_t SHIM_MBUF_TX_TCP_SEG = RTE_MBUF_F_TX_TCP_SEG;
static const uint64_t SHIM_MBUF_TX_UDP_SEG = RTE_MBUF_F_TX_UDP_SEG;
static const uint64_t SHIM_MBUF_TX_IP_CKSUM = RTE_MBUF_F_TX_IP_CKSUM;
static const uint64_t SHIM_MBUF_TX_TCP_CKSUM = RTE_MBUF_F_TX_TCP_CKSUM;
static const uint64_t SHIM_MBUF_TX_UDP_CKSUM = RTE_MBUF_F_TX_UDP_CKSUM;
static const uint64_t SHIM_MBUF_TX_L4_MASK = RTE_MBUF_F_TX_L4_MASK;
static const uint64_t SHIM_MBUF_TX_IPV4 = RTE_MBUF_F_TX_IPV4;
static const uint64_t SHIM_MBUF_TX_IPV6 = RTE_MBUF_F_TX_IPV6;

static const uint64_t SHIM_RSS_IP = RTE_ETH_RSS_IP;
static const uint64_t SHIM_RSS_TCP = RTE_ETH_RSS_TCP;
static const uint64_t SHIM_RSS_UDP = RTE_ETH_RSS_UDP;
static const uint32_t SHIM_DEV_INTR_RMV = RTE_ETH_DEV_INTR_RMV;

/* Version of the DPDK that is linked, such as "DPDK 22.11.1". */
const char *shim_version(void);

/*
 * From here on EAL never gives back what its heap takes from the system, as it never does with what it started with. Once, after
 * rte_eal_init. Returns 0 or an errno.
 */
int shim_keep_memory(void);

/* The calling thread's rte_errno. */
int shim_errno(void);

/* rte_eth_rx_burst(): up to n packets. */
uint16_t shim_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t n);
/* rte_eth_tx_burst(): gives away the first of the packets, and says how many. */
uint16_t shim_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t n);
/* rte_eth_tx_prepare(): how many of the packets, from the first, the driver will take; rte_errno says why not the next. */
uint16_t shim_tx_prepare(uint16_t port, uint16_t queue, struct rte_mbuf **packets, uint16_t n);
/* rte_pktmbuf_alloc_bulk(): all n or none; 0 when done. */
int shim_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **packets, unsigned int n);
/* rte_pktmbuf_free_bulk(): whole chains. Frames in one buffer of one pool, held once, take a short way. */
void shim_free_bulk(struct rte_mbuf **packets, unsigned int n);
/* rte_mempool_get_bulk() and rte_mempool_put_bulk(): buffers as they lie in the pool, all n or none. */
int shim_get_bulk(struct rte_mempool *pool, struct rte_mbuf **buffers, unsigned int n);
void shim_put_bulk(struct rte_mempool *pool, struct rte_mbuf **buffers, unsigned int n);
/*
 * Whether each buffer of a pool, of which none is out, has its memory right behind its fields, `room` bytes or more: what is written there
 * without a look at buf_addr stays inside.
 */
int shim_plain_buffers(struct rte_mempool *pool, uint16_t room);

/* A frame that lies in memory of somebody else's, from shim_lend() until every user of its buffer has freed it. */
struct shim_loan {
	struct rte_mbuf_ext_shared_info shared;
	/* 1 until then; written by the thread that frees it, after the last read of the frame. */
	uint32_t away;
};

/* rte_pktmbuf_attach_extbuf(): the buffer becomes a frame of `length` bytes at `start`, where a device reads it at the same address. */
void shim_lend(struct rte_mbuf *packet, void *start, uint16_t length, struct shim_loan *loan);
/* rte_eth_tx_done_cleanup(): frees what was sent; a negative errno when the driver cannot. */
int shim_tx_done(uint16_t port, uint16_t queue);

/* rte_ring_dequeue_burst(): up to n packets out of a software ring. */
unsigned int shim_ring_take(struct rte_ring *ring, struct rte_mbuf **packets, unsigned int n);
/* rte_ring_enqueue_burst(): gives away the first of the packets, and says how many. */
unsigned int shim_ring_give(struct rte_ring *ring, struct rte_mbuf **packets, unsigned int n);
/* rte_ring_free_count(): how many packets a software ring has room for. */
unsigned int shim_ring_room(const struct rte_ring *ring);

/*
 * Ports whose device arguments match (RTE_ETH_FOREACH_MATCHING_DEV), in DPDK's order: at most `room` ids are written to
 * `ports`. Returns how many match, or a negative errno.
 */
int shim_matching_ports(const char *devargs, uint16_t *ports, int room);

/* offsetof() as this file's compiler sees it, in the order of enum shim_mbuf_layout; what bindgen saw must agree. */
size_t shim_mbuf_layout(size_t *offsets, size_t room);

/*
 * rte_eth_link_get_nowait(), whose result is laid out differently in each release. The speed is in Mbit/s, 0 when there is
 * none, UINT32_MAX when the driver does not know it. Returns 0 or a negative errno.
 */
int shim_link(uint16_t port, int *up, uint32_t *speed);

/* rte_eth_bond_member_add(), which was rte_eth_bond_slave_add() up to DPDK 23.07. */
int shim_bond_add(uint16_t bond, uint16_t member);
/* rte_eth_bond_active_members_get(): how many were written to `members`, or a negative number. */
int shim_bond_active(uint16_t bond, uint16_t *members, uint16_t room);
/* Whether a bond by LACP sends on a member, which it does two seconds after it is active at the earliest (IEEE 802.1AX, Distributing). */
int shim_bond_distributes(uint16_t bond, uint16_t member);
/*
 * Takes from a port that nobody has configured yet the promise that its driver reports each change of its link, so that the bonding
 * driver polls it: net_tap promises and never reports. Returns 0 or a negative errno.
 */
int shim_poll_link(uint16_t port);

/* A meter with one bucket: rte_meter's srTCM without an excess burst. */
struct shim_meter {
	struct rte_meter_srtcm_profile profile;
	struct rte_meter_srtcm meter;
};

/* rte_meter_srtcm_config(): bytes a second, and bytes at once. Returns 0 or a negative errno. */
int shim_meter_init(struct shim_meter *meter, uint64_t rate, uint64_t burst);
/* rte_meter_srtcm_color_blind_check(): 1 when so many bytes may pass now, and are counted; else 0. */
int shim_meter_passes(struct shim_meter *meter, uint32_t bytes);

/* The calling thread's lcore id, UINT32_MAX for a thread that EAL does not know. */
uint32_t shim_lcore_id(void);

/*
 * Sends DPDK's log to `write`, which gets the level (RTE_LOG_EMERG to RTE_LOG_DEBUG) and the text, in the thread that
 * logs. Returns 0 or a negative errno.
 */
int shim_log_to(void (*write)(uint32_t level, const char *text, size_t length));

#endif
